"""Whatever a file holds, reading it gives a recipe or an error for people."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from softdimo.errors import RecipeError
from softdimo.recipe import Recipe, load
from softdimo.recipe.nodes import Scalars
from tests.recipe.toy import STUDENT

FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class _Plain(yaml.SafeDumper):
    """Writes what our loader reads."""


Scalars.install(_Plain)
TREE = yaml.safe_load(STUDENT)


def reads(file: Path, overrides: list[str] | None = None) -> None:
    try:
        recipe = load(file, overrides or []).recipe
    except RecipeError as error:
        wrong = [
            x for x in str(error).splitlines() if not x.isprintable() or not x.startswith((f"{file}:", "override "))
        ]
        if wrong or not str(error):
            raise
    else:
        assert isinstance(recipe, Recipe)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "r.yaml"


@FUZZ
@given(st.binary(max_size=200))
def test_bytes(file, data):
    file.write_bytes(data)
    reads(file)


@FUZZ
@given(st.text(max_size=200))
@example("{" * 500)
@example("? " * 400)
@example("a: &a {b: *a}")
@example("title: &t [*t]")
def test_text(file, text):
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    reads(file)


@FUZZ
@given(st.text("[]{}:,-&*#?|>!%@`'\" \nab01.~<\t", max_size=60), st.integers(0, len(STUDENT)))
def test_noise_inside_a_valid_recipe(file, noise, where):
    file.write_text(STUDENT[:where] + noise + STUDENT[where:])
    reads(file)


@FUZZ
@given(st.integers(0, len(STUDENT)), st.integers(0, 40))
def test_text_cut_out_of_a_valid_recipe(file, where, length):
    file.write_text(STUDENT[:where] + STUDENT[where + length :])
    reads(file)


def places(tree, path=()):
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


VALUES = st.recursive(
    st.sampled_from([None, True, 0, -1, 2**70, 1e-5, 1e308, float("inf"), float("nan"), "", "x", "toy_loss", "a\0b"])
    | st.text(max_size=6) | st.floats() | st.integers(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["use", "name", "weight", "of", "recipe", "set", "from", "é"]), inner, max_size=3
    ),
    max_leaves=5,
)  # fmt: skip


@FUZZ
@given(st.sampled_from(list(places(TREE))), VALUES, st.booleans())
def test_any_value_at_any_place(file, place, value, add):
    tree = yaml.safe_load(STUDENT)
    node = tree
    for key in place[:-1]:
        node = node[key]
    if not place:
        tree = value
    elif add and isinstance(node, dict):
        node["extra"] = value
    else:
        node[place[-1]] = value
    text = yaml.dump(tree, Dumper=_Plain, allow_unicode=True)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    reads(file)


@FUZZ
@given(st.lists(st.text(max_size=12).map(lambda t: f"train.{t}") | st.text(max_size=20), max_size=3))
@example(["train.terms.0.weight.x.y.z=1", "eval.rows.0.0.0=[["])
@example(["=".join(["a.b"] * 3)])
def test_overrides(file, overrides):
    file.write_text(STUDENT)
    reads(file, overrides)


@FUZZ
@given(st.sampled_from(list(places(TREE))[1:]), VALUES)
def test_overrides_of_any_place(file, place, value):
    file.write_text(STUDENT)
    with contextlib.suppress(UnicodeEncodeError):
        written = yaml.dump(value, Dumper=_Plain, default_flow_style=True, width=10**6).removesuffix("\n...\n")
        reads(file, [f"{'.'.join(map(str, place))}={written.strip()}"])
