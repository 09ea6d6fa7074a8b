"""Prompts from files: every format, splits, groups, order, and what is said about files that are wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from softdimo import recipe as recipes
from softdimo.errors import DataError, PluginError, RecipeError
from softdimo.kinds import Context, ImageShape
from softdimo.testing import check_data
from softdimo_plugins.data.prompts import PromptData, Prompts

BLANK = Context(ImageShape(1, 1, 1), (), print)
MANY = [f"a picture of {i} things" for i in range(40)]


def build(path: Path, **settings: Any) -> PromptData:
    return Prompts.model_validate({"use": "prompts", "path": str(path)} | settings).build(BLANK)


def all_of(data: PromptData, split: str) -> list[str]:
    source = data.source(split)
    return list(source.get(torch.arange(len(source))).cond.prompts)


def write(path: Path, prompts: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".txt":
        path.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(prompts), encoding="utf-8")
    elif path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(
            arrow.table({"URL": ["x"] * len(prompts), "TEXT": prompts}), path
        )
    else:
        path.write_text("".join(json.dumps({"caption": p, "n": 1}) + "\n" for p in prompts), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".ndjson", ".json", ".parquet"])
def test_every_format_keeps_the_contract_and_the_prompts(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"p{suffix}", MANY)
    check_data(Prompts(path=str(path), held_out=0.2).build)
    check_data(Prompts(path=str(path), held_out=0.0).build)
    data = build(path, held_out=0)
    assert all_of(data, "train") == all_of(data, "held_out") == MANY
    assert list(data.conditions(50).prompts) == [*MANY, *MANY[:10]]
    assert data.conditions(3).labels.tolist() == [-1, -1, -1]
    assert (data.image, data.classes, data.has_images) == ((3, 256, 256), (), False)


def test_odd_texts(tmp_path: Path) -> None:
    raw = b"\xef\xbb\xbf  first \r\n\r\n\t\n\xc3\xa9t\xc3\xa9, \xe5\x8c\x97\xe4\xba\xac\r\nlast without an end"
    (tmp_path / "a.txt").write_bytes(raw)
    assert all_of(build(tmp_path / "a.txt", held_out=0), "train") == ["first", "été, 北京", "last without an end"]
    lines = ['{"text": "two\\nlines", "TEXT": "no"}', "", '"a bare one"', '{"text": null}', '{"text": " "}']
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    assert all_of(build(tmp_path / "b.jsonl", held_out=0), "train") == ["two\nlines", "a bare one"]
    (tmp_path / "c.jsonl").write_text('{"prompt": "p", "caption": "c", "mine": "m"}\n')
    assert all_of(build(tmp_path / "c.jsonl", held_out=0), "train") == ["p"]
    assert all_of(build(tmp_path / "c.jsonl", held_out=0, field="mine"), "train") == ["m"]


def test_parquet_with_nulls_slices_and_several_row_groups(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [None if i % 7 == 3 else f"caption {i}" for i in range(100)]
    table = arrow.table({"caption": texts, "style": [str(i % 3) for i in range(100)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=9)
    data = build(tmp_path / "a.parquet", held_out=0, group="style")
    assert all_of(data, "train") == [t for t in texts if t]
    found = data.source("train").cond(torch.arange(len(data.source("train"))))
    assert found.labels.tolist() == [i % 3 for i, t in enumerate(texts) if t]
    chosen = arrow.table({"caption": arrow.array(["a", "b"]).dictionary_encode()})
    parquet.write_table(chosen, tmp_path / "b.parquet")
    assert all_of(build(tmp_path / "b.parquet", held_out=0), "train") == ["a", "b"]
    parquet.write_table(arrow.table({"caption": [1, 2], "n": [3, 4]}), tmp_path / "c.parquet")
    assert all_of(build(tmp_path / "c.parquet", held_out=0), "train") == ["1", "2"]
    with pytest.raises(DataError, match=r"c\.parquet has no column 'prompt'; it has caption, n"):
        build(tmp_path / "c.parquet", field="prompt")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"d\.parquet cannot be read"):
        build(tmp_path / "d.parquet")


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PluginError, match=r"needs pyarrow .*: run `pip install 'softdimo\[parquet\]'`"):
        build(tmp_path / "a.parquet")


def hpsv2(folder: Path) -> Path:
    """The layout of the benchmark: four styles, a list of prompts each."""
    for style in ("anime", "concept-art", "paintings", "photo"):
        write(folder / f"{style}.json", [f"{style} {i}" for i in range(5)])
    return folder


def test_the_styles_of_hpsv2_take_turns_and_become_classes(tmp_path: Path) -> None:
    data = build(hpsv2(tmp_path / "hps"), group="file", held_out=0)
    assert data.classes == ("anime", "concept-art", "paintings", "photo")
    cond = data.conditions(20)
    assert cond.prompts[:6] == ("anime 0", "concept-art 0", "paintings 0", "photo 0", "anime 1", "concept-art 1")
    assert cond.labels.tolist() == [0, 1, 2, 3] * 5
    assert sorted(cond.prompts) == sorted(all_of(data, "held_out"))
    check_data(Prompts(path=str(tmp_path / "hps"), group="file", held_out=0.0).build)


def test_the_tags_of_geneval_become_classes(tmp_path: Path) -> None:
    tags = ["single_object"] * 3 + ["counting"] * 2 + ["color_attr"]
    records = [
        {"tag": tag, "include": [{"class": "bench", "count": 1}], "prompt": f"p{i}"} for i, tag in enumerate(tags)
    ]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    data = build(path, group="tag", held_out=0)
    assert data.classes == ("single_object", "counting", "color_attr")
    cond = data.conditions(12)
    assert cond.prompts == ("p0", "p3", "p5", "p1", "p4", "p2") * 2
    assert cond.labels.tolist() == [0, 1, 2, 0, 1, 0] * 2


def test_a_benchmark_is_sampled_for_and_never_trained_on(tmp_path: Path) -> None:
    train, bench = write(tmp_path / "laion.txt", MANY), hpsv2(tmp_path / "hps")
    data = build(train, held_out=str(bench), group="file", longest=25)
    assert all_of(data, "train") == [p for p in MANY if len(p) <= 25]
    assert data.source("train").get(torch.arange(3)).cond.labels.tolist() == [-1] * 3
    assert len(data.source("held_out")) == 20
    assert data.conditions(4).labels.tolist() == [0, 1, 2, 3]
    moved = hpsv2(tmp_path / "elsewhere")
    assert build(train, held_out=str(moved), group="file", longest=25).fingerprint() == data.fingerprint()
    (bench / "photo.json").write_text(json.dumps(["one"]))
    assert build(train, held_out=str(bench)).fingerprint() != data.fingerprint()


def test_what_is_held_out_depends_on_the_prompt_and_the_seed_alone(tmp_path: Path) -> None:
    a = build(write(tmp_path / "a.txt", MANY), held_out=0.25)
    b = build(write(tmp_path / "b.txt", MANY[::-1]), held_out=0.25)
    assert len(a.source("held_out")) == 10
    assert set(all_of(a, "held_out")) == set(all_of(b, "held_out"))
    assert not set(all_of(a, "train")) & set(all_of(a, "held_out"))
    assert sorted(all_of(a, "train") + all_of(a, "held_out")) == sorted(MANY)
    other = build(tmp_path / "a.txt", held_out=0.25, seed=1)
    assert set(all_of(other, "held_out")) != set(all_of(a, "held_out"))
    twice = build(write(tmp_path / "c.txt", [p for p in MANY for _ in range(3)]), held_out=0.25)
    assert not set(all_of(twice, "train")) & set(all_of(twice, "held_out"))
    assert len(build(write(tmp_path / "d.txt", MANY[:3]), held_out=0.01).source("held_out")) == 1
    with pytest.raises(DataError, match=r"set data\.held_out to 0"):
        build(write(tmp_path / "e.txt", ["same", "same"]))


def test_lengths(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ["a", "ab", "abc", "abcd"])
    assert all_of(build(path, held_out=0, shortest=2, longest=3), "train") == ["ab", "abc"]
    with pytest.raises(
        DataError, match=r"has no prompts of the lengths asked for; see data\.shortest and data\.longest"
    ):
        build(path, shortest=9)


def test_the_stream_resumes_and_ranks_take_shares(tmp_path: Path) -> None:
    data = build(write(tmp_path / "a.txt", MANY), held_out=0)
    whole = data.stream(8, seed=3)
    ten = [next(whole).cond.prompts for _ in range(10)]
    assert sorted(p for batch in ten[:5] for p in batch) == sorted(MANY)
    again = data.stream(8, seed=3)
    again.load_state_dict({"epoch": 1, "offset": 16})
    assert next(again).cond.prompts == ten[7]
    ranks = [data.stream(4, seed=3, rank=r, world=2) for r in range(2)]
    assert tuple(p for rank in ranks for p in next(rank).cond.prompts) == ten[0]


def test_a_fingerprint_is_that_of_contents_and_of_choices(tmp_path: Path) -> None:
    a, b = write(tmp_path / "x" / "a.txt", MANY), write(tmp_path / "y" / "a.txt", MANY)
    base = build(a)
    assert base.fingerprint() == build(b).fingerprint()
    assert Prompts(path=str(a)).content() == Prompts(path=str(b)).content()
    for change in ({"held_out": 0.2}, {"seed": 1}, {"longest": 22}, {"group": "file"}):
        assert build(a, **change).fingerprint() != base.fingerprint(), change
    write(b, [*MANY[:-1], "another"])
    assert Prompts(path=str(a)).content() != Prompts(path=str(b)).content()
    assert base.fingerprint() != build(b).fingerprint()


def test_memory_is_offsets_not_objects(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", [f"{i} {'x' * 50}" for i in range(2000)])
    data = build(path, held_out=0)
    part = data.source("train").texts.parts[0]
    assert part.begin.itemsize * len(part.begin) + part.size.itemsize * len(part.size) <= 16 * 2000
    assert all_of(data, "train")[1234].startswith("1234 ")


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.txt", b"ok\n\xff\xfe\n", {}, r"a\.txt:2: invalid start byte at byte 0; write it as UTF-8"),
        ("a.txt", b"ok\n", {"group": "tag"}, r"lines of text have no field 'tag'; set data\.group to null"),
        ("a.txt", b"", {}, "has no prompts"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt"', {}, r"a\.jsonl: record 2: Expecting"),
        ("a.jsonl", b'{"url": "a"}\n', {}, r"record 1: has no 'prompt', only url; set data\.field"),
        ("a.jsonl", b'{"prompt": ["a"]}\n', {}, "record 1: 'prompt' is a list, not a text"),
        ("a.jsonl", b"[1]\n", {}, "record 1: is a list, not a record or a text"),
        ("a.jsonl", b'"a"\n', {"field": "p"}, "record 1: is a str, not a record"),
        ("a.jsonl", b'{"prompt": "a"}\n', {"group": "tag"}, "has no 'tag'; set data.group to a field"),
        ("a.jsonl", b'{"prompt": "a", "tag": [1]}\n', {"group": "tag"}, "a group is a text or a number, not a list"),
        ("a.json", b'{"a": 1}', {}, "holds no list of texts or records, but a dict"),
        ("a.json", b"[", {}, "is not JSON that can be read"),
        ("a.json", b'["a", 3]', {}, "record 2: is a int, not a record or a text"),
        ("a.xyz", b"a\n", {}, r"is no file of texts \(\.txt, "),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    tmp_path: Path, name: str, content: bytes, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        build(tmp_path / name, **settings)


def test_folders_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; give a file or a folder of texts"):
        build(tmp_path / "nowhere")
    with pytest.raises(DataError, match="does not exist"):
        Prompts(path=str(tmp_path / "nowhere")).content()
    (tmp_path / "e").mkdir()
    with pytest.raises(DataError, match="has no files of texts"):
        build(tmp_path / "e")
    write(tmp_path / "e" / "a.txt", MANY)
    write(tmp_path / "e" / "b.json", MANY)
    write(tmp_path / "e" / ".hidden.jsonl", MANY)
    with pytest.raises(
        DataError, match=r"has \.json and \.txt files; give one file, or a folder with files of one kind"
    ):
        build(tmp_path / "e")


def test_a_tiny_version_makes_prompts_up_where_there_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.txt", MANY)
    assert Prompts(path=str(path)).smoke() == Prompts(path=str(path))
    assert Prompts(path=str(path), size=1024).smoke() == Prompts(path=str(path), size=256)
    for gone in (Prompts(path="gone.txt"), Prompts(path=str(path), held_out=str(tmp_path / "bench"), group="file")):
        tiny = gone.smoke()
        assert (tiny.random, tiny.content()) == (64, "")
        data = tiny.build(BLANK)
        assert len(set(all_of(data, "train")) | set(all_of(data, "held_out"))) == 64
        assert "this is a trial of the code alone" in caplog.text
        check_data(tiny.build)
        assert data.fingerprint() != build(path).fingerprint()


def test_relative_paths_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "there" / "train.txt", MANY)
    write(tmp_path / "there" / "bench.jsonl", ["one"])
    recipe = tmp_path / "there" / "r.yaml"
    recipe.write_text("title: t\ndata: {use: prompts, path: train.txt, held_out: bench.jsonl}\n")
    monkeypatch.chdir(tmp_path)
    data: PromptData = recipes.load(recipe).recipe.data.build(BLANK)
    assert data.conditions(2).prompts == ("one", "one")
    wrong = recipes.load(recipe, ["data.held_out=0.5"]).recipe.data
    assert getattr(wrong, "held_out") == 0.5  # noqa: B009
    with pytest.raises(RecipeError, match=r"data\.held_out"):
        recipes.load(recipe, ["data.held_out=1.5"])
