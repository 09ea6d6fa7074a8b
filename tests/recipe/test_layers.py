"""`base:` below a recipe, overrides above it."""

from __future__ import annotations

import pytest

from softdimo.recipe import load
from softdimo.recipe.nodes import MAX_DIGITS
from tests.recipe.toy import STUDENT


def student(tmp_path, child: str = "", name: str = "base.yaml", *overrides: str):
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text(STUDENT)
    (tmp_path / "child.yaml").write_text(f"base: {name}\n{child}")
    return load(tmp_path / "child.yaml", overrides).recipe


def test_mappings_merge_and_lists_replace(tmp_path):
    recipe = student(tmp_path, "title: Child\ntrain: {batch_size: 2, terms: [{use: toy_loss}]}\neval: {seeds: [7]}\n")
    assert (recipe.title, recipe.train.iterations, recipe.train.batch_size) == ("Child", 10, 2)
    assert [t.name for t in recipe.train.terms] == ["toy_loss"]
    assert recipe.eval.seeds == (7,)
    assert recipe.teacher.width == 8


def test_null_removes_a_section(tmp_path):
    assert student(tmp_path, "search: null\n").search is None


def test_naming_another_component_replaces_its_settings(tmp_path):
    same = student(tmp_path, "teacher: {use: toy_teacher, heads: 4}\n")
    assert (same.teacher.width, same.teacher.heads) == (8, 4)
    kept = student(tmp_path, "teacher: {heads: 4}\n")
    assert (kept.teacher.width, kept.teacher.heads) == (8, 4)
    other = student(tmp_path, "tokenizer: {use: toy:toy_tokenizer}\nteacher: {use: toy:toy_teacher, heads: 1}\n")
    assert (other.teacher.width, other.teacher.heads) == (8, 1)
    replaced = student(tmp_path, "", "base.yaml", "teacher.width=16", "teacher.use=toy:toy_teacher")
    assert replaced.teacher.width == 8


def test_bases_of_bases_and_where_values_were_written(faults):
    lines = faults("base: b.yaml\ntrain: {batch_sise: 3}\n", a=STUDENT + "sead: 1\n", b="base: a.yaml\nseed: x\n")
    assert [line.split(" ")[:2] for line in lines] == [
        ["a.yaml:33:1", "sead:"],
        ["b.yaml:2:7", "seed:"],
        ["recipe.yaml:2:9", "train.batch_sise:"],
    ]


@pytest.mark.parametrize(
    ("text", "files", "expected"),
    [
        ("base: teecher.yaml\n", {"teacher": STUDENT},
         "recipe.yaml:1:7 base: teecher.yaml does not exist; did you mean `teacher.yaml`?"),
        ("base: a.yaml\n", {"a": "base: b.yaml\n", "b": "base: a.yaml\n"},
         "b.yaml:1:7 base: is circular: a.yaml -> b.yaml -> a.yaml"),
        ("base: recipe.yaml\n", {}, "recipe.yaml:1:7 base: is circular: recipe.yaml -> recipe.yaml"),
        ("base: 3\n", {}, "recipe.yaml:1:7 base: must be the path of a recipe, not 3"),
        ("base: [a, b]\n", {}, "recipe.yaml:1:7 base: must be the path of a recipe, not a list"),
        ("base: null\n" , {}, "recipe.yaml:1:7 base: must be the path of a recipe, not null"),
        ("base: .\n", {}, "recipe.yaml:1:7 base: . is a folder"),
        ('base: "a\\0b"\n', {}, "recipe.yaml:1:7 base: a\\x00b cannot be read (embedded null byte)"),
        ("base: a.yaml\n", {"a": ""}, "a.yaml:1:1 is empty; a recipe is a mapping with at least `title:` and `data:`"),
        ("base: a.yaml\n", {"a": "- 1\n"}, "a.yaml:1:1 must be a mapping (`key: value` lines), not a list"),
        ("", {}, "recipe.yaml:1:1 is empty; a recipe is a mapping with at least `title:` and `data:`"),
        ("# comment\n", {}, "recipe.yaml:1:1 is empty; a recipe is a mapping with at least `title:` and `data:`"),
        ("- a\n- b\n", {}, "recipe.yaml:1:1 must be a mapping (`key: value` lines), not a list"),
        ("just text\n", {}, "recipe.yaml:1:1 must be a mapping (`key: value` lines), not the text `just text`"),
        (b"title: x\ndata: \xff\n", {}, "recipe.yaml:2:7 not UTF-8: the byte 0xff; save the file as UTF-8"),
        ("title: x\n".encode("utf-16"), {}, "recipe.yaml:1:1 not UTF-8: the byte 0xff; save the file as UTF-8"),
        ("title: x\n\tseed: 1\n", {}, "recipe.yaml:2:1 not valid YAML: a tab; indent with spaces"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(faults, text, files, expected):
    assert faults(text, **files) == [expected]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + STUDENT.replace("\n", "\r\n").encode())
    assert load(tmp_path / "r.yaml").recipe.title == "Toy"


def test_paths_start_at_the_file_that_names_them(tmp_path, monkeypatch):
    child = "teacher: {weights: run.safetensors}\ntrain: {start: {from: '~/start'}}\n"
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "parts").mkdir()
    base = STUDENT.replace("data: {use: toy_data}", "data: {use: toy_data, folder: images}").replace(
        "tokenizer: {use: toy_tokenizer}", "tokenizer: {use: toy_tokenizer, weights: hf://o/r/f}"
    )
    (tmp_path / "parts/base.yaml").write_text(base)
    (tmp_path / "child.yaml").write_text(f"base: parts/base.yaml\n{child}")
    recipe = load("../child.yaml", ["search.score.judge=judge"]).recipe
    assert recipe.data.folder == str(tmp_path / "parts/images")
    assert recipe.tokenizer.weights == "hf://o/r/f"
    assert recipe.teacher.weights == str(tmp_path / "run.safetensors")
    assert recipe.train.start.from_ == "/home/me/start"
    assert recipe.search.score.judge == str(tmp_path / "here/judge")


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.iterations=500", lambda r: r.train.iterations == 500),
        ("train.player.optimizer.lr=1e-3", lambda r: r.train.player.optimizer.lr == 1e-3),
        ("train.player.optimizer.betas=[0, 0.9]", lambda r: r.train.player.optimizer.betas == (0, 0.9)),
        ("train.player={every: 2}", lambda r: r.train.player.every == 2 and r.train.player.accumulate == 1),
        ("train.terms.1.weight=3", lambda r: r.train.terms[1].weight == 3),
        ("train.terms.second.weight=3", lambda r: r.train.terms[1].weight == 3),
        ("train.terms.1.weight.ratio=0.25", lambda r: r.train.terms[1].weight.ratio == 0.25),
        ("train.terms.0.weight.ratio=0.25", lambda r: False),
        ("eval.rows.teacher.sampler.steps=9", lambda r: r.eval.rows[1].sampler.steps == 9),
        ("eval.seeds.1=9", lambda r: r.eval.seeds == (0, 9, 2)),
        ("eval=null", lambda r: r.eval is None),
        ("eval=", lambda r: r.eval is None),
        ("title=a = b", lambda r: r.title == "a = b"),
        ("title='3'", lambda r: r.title == "3"),
        ("title=yes", lambda r: r.title == "yes"),
        ("hardware.compile=true", lambda r: r.hardware.compile is True),
        (" seed = 4", lambda r: r.seed == 4),
    ],
)
def test_overrides(tmp_path, override, read):
    (tmp_path / "r.yaml").write_text(STUDENT)
    if "terms.0.weight" in override:  # the other term's ratio then has no constant to refer to
        overrides = [override, "train.terms.1.weight=1", "train.terms.0.weight.of=second"]
        assert load(tmp_path / "r.yaml", overrides).recipe.train.terms[0].weight.ratio == 0.25
        return
    assert read(load(tmp_path / "r.yaml", [override]).recipe)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batch_size=four", "override 1: train.batch_size: must be a whole number, not the text `four`"),
        ("train.batch_size='4'", "override 1: train.batch_size: must be a whole number, not the text `4`"),
        ("train.batch_sise=4", "override 1: train.batch_sise: unknown key; did you mean `batch_size`? (known: "),
        ("teacher.use=toy_teecher", "override 1: teacher.use: no teacher is called `toy_teecher`; did you mean "),
        ("train.terms.7.weight=1", "override 1: train.terms: no item `7`; the list has 2 (counted from 0)"),
        ("train.terms.third.weight=1", "override 1: train.terms: no item `third`; the list has 2 (counted from 0)"),
        ("train.terms.-1.weight=1", "override 1: train.terms: no item `-1`; the list has 2 (counted from 0)"),
        ("train.terms.toy_loss.weight=1", "override 1: train.terms: no item `toy_loss`; the list has 2"),
        ("title", "override 1: `title` is not of the form key.path=value"),
        ("=3", "override 1: `=3` is not of the form key.path=value"),
        ("a..b=3", "override 1: `a..b=3` is not of the form key.path=value"),
        ("seed=[1", "override 1: seed: not valid YAML: "),
        ("seed={a: 1, a: 2}", "override 1: seed: duplicate key"),
        ("seed=" + "9" * (MAX_DIGITS + 1), f"override 1: seed: a number of more than {MAX_DIGITS} characters"),
        (".".join("a" * 5000) + "=1", "override 1: `a.a.a.a"),
        ("title.x=1", "override 1: title: must be text, not a mapping"),
        ("base=other.yaml", "override 1: base: unknown key"),
    ],
)
def test_overrides_that_are_wrong(faults, override, expected):
    (line,) = faults(STUDENT, override)
    assert line.startswith(expected)


def test_overrides_are_numbered(faults):
    lines = faults(STUDENT, "seed=1", "seed=x", "nope=1")
    assert [line.split(":")[0] for line in lines] == ["override 2", "override 3"]
