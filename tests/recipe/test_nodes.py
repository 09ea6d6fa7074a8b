"""YAML: scalar types, positions, and files that are not YAML."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from softdimo.recipe.nodes import MAX_NODES, Fault, Mark, parse

HERE = Mark("f.yaml", Path("/folder"), 1, 1)


def value(text: str):
    faults: list[Fault] = []
    node = parse(text, HERE, faults)
    assert not faults, [str(f) for f in faults]
    return None if node is None else node.plain()


def lines(text: str) -> list[str]:
    faults: list[Fault] = []
    parse(text, HERE, faults)
    return [str(f) for f in faults]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("1.", 1.0), (".5", 0.5), ("-1.5e+3", -1500.0), ("+2", 2), ("012", 12),
        ("0x1F", 31), ("0o17", 15), (".inf", math.inf), ("-.INF", -math.inf), ("yes", "yes"), ("no", "no"),
        ("on", "on"), ("True", True), ("FALSE", False), ("1:30", "1:30"), ("2024-01-31", "2024-01-31"),
        ("1_000", "1_000"), ("~", None), ("null", None), ("Null", None), ("''", ""), ("'1e-5'", "1e-5"),
        ("!!str 3", "3"),
        ("!!float 3", 3.0), ("e5", "e5"), ("1e", "1e"), ("=", "="), ("[a, 1]", ["a", 1]), ("{a: 1}", {"a": 1}),
        ("1: x", {"1": "x"}), ("null: x", {"null": "x"}), ("|\n a\n b\n", "a\nb\n"),
    ],
)  # fmt: skip
def test_scalars(text, expected):
    got = value(text)
    assert got == expected
    assert type(got) is type(expected) or isinstance(got, str)


def test_not_a_number():
    assert math.isnan(value(".nan"))


def test_anchors_aliases_and_merge_keys():
    text = "a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\nd:\n  <<: [*x, {r: 4}]\n  p: 5\n"
    assert value(text) == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 2},
        "c": {"p": 1, "q": 3},
        "d": {"p": 5, "q": 2, "r": 4},
    }


def test_positions_of_keys_and_values():
    node = parse("a:\n  - b: [1, two]\n", HERE, [])
    assert node is not None
    two = node.child("a").child(0).child("b").child(1)
    assert str(two.mark) == "f.yaml:2:12"
    assert str(node.child("a").child(0).child("b").key) == "f.yaml:2:5"
    assert str(node.child("a").anchor) == "f.yaml:1:1"
    assert two.plain().folder == Path("/folder")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1 a: duplicate key (first at line 1)"),
        ("t:\n  - {a: 1, a: 2}\n", "f.yaml:2:12 t.0.a: duplicate key (first at line 2)"),
        ("a: 1\n\tb: 2\n", "f.yaml:2:1 not valid YAML: a tab; indent with spaces"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2:2 not valid YAML: "),
        ("a: *nowhere\n", "f.yaml:1:4 not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1 not valid YAML: expected a single document"),
        ("a: 'x\x07'\n", "f.yaml:1:6 not valid YAML: the character U+0007"),
        ("? [a, b]\n: 1\n", "f.yaml:1:3 a key must be text"),
        ("a: !!python/object/apply:os.getcwd []\n", "f.yaml:1:4 a: the tag tag:yaml.org,2002:python/object/apply"),
        (
            "a: !!python/name:os.getcwd\n",
            "f.yaml:1:4 a: the tag tag:yaml.org,2002:python/name:os.getcwd is not allowed",
        ),
        ("a: !!binary aGk=\n", "f.yaml:1:4 a: the tag tag:yaml.org,2002:binary is not allowed"),
        ("a: !!int abc\n", "f.yaml:1:4 a: `abc` is not a int"),
        ('a: "\\ud800"\n', "f.yaml:1:4 a: text with half of a surrogate pair"),
        ("a: &x [*x]\n", "f.yaml:1:4 a.0: an alias that contains itself"),
        ("a: &x {<<: *x}\n", "f.yaml:1:4 a: an alias that contains itself"),
        ("a: {<<: 3}\n", "f.yaml:1:9 a: `<<` takes a mapping or a list of mappings"),
        ("[" * 3000, "f.yaml:1:1 nested too deeply"),
    ],
)
def test_faults(text, expected):
    found = lines(text)
    assert found, text
    assert found[0].startswith(expected), found


def test_nested_aliases_do_not_explode():
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    found = lines(text)
    assert len(found) == 1
    assert f"more than {MAX_NODES} values" in found[0]
