"""`softdimo tokenize`: the tokens of the images, whole after any interruption, and never another cache's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softdimo import recipe as recipes
from softdimo import run
from softdimo.build import Components
from softdimo.errors import DataError, Interrupted, PluginError
from softdimo.files import read_weights, save_weights
from softdimo.inputs import shards, tokenize
from tests import ranks
from tests.caches import BLANK, HELD_OUT, SHARD, TRAIN, files, loaded, make, parts, read
from tests.caches import cache as cache
from tests.caches import copy as copy
from tests.caches import home as home


def test_a_cache_gives_the_tokens_that_encoding_gives(home: Path, cache: Path) -> None:
    kept, fresh = parts(home, cache).tokenized, Components(loaded(home).recipe).tokenized
    for split, n in (("train", TRAIN), ("held_out", HELD_OUT)):
        index = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        one, other = kept.source(split).get(index), fresh.source(split).get(index)
        assert one.tokens is not None
        assert other.tokens is not None
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.cond.labels, other.cond.labels)
        assert one.tokens.dtype == torch.int64
        assert len(one.tokens.unique()) > 3
    assert (kept.classes, kept.image, kept.has_images) == (("cats", "dogs"), (3, 8, 8), False)
    assert torch.equal(kept.conditions(5).labels, torch.tensor([0, 1, 0, 1, 0]))
    stream, again = kept.stream(8, 3), fresh.stream(8, 3)
    assert all(torch.equal(next(stream).tokens, next(again).tokens) for _ in range(9))  # type: ignore[arg-type]


def test_what_is_written(home: Path, cache: Path) -> None:
    index = shards.read_index(cache)
    assert [s.count for s in index.splits["train"].shards] == [10, 10, 10, 6]
    assert [s.file for s in index.splits["held_out"].shards] == ["held_out-00000.safetensors"]
    assert (index.tokens, index.reference, index.tokenizer.use) == ((2, 2, 1, 16), TRAIN, "conv_vq")
    tokens, labels, plan = shards.read_shard(cache / "train-00000.safetensors")
    assert (tokens.dtype, labels.dtype, plan) == (torch.uint8, torch.uint8, index.digest())
    shards.verify_files(cache, index)
    assert [shards.smallest(V) for V in (256, 257, 2**15, 2**15 + 1)] == [
        torch.uint8, torch.int16, torch.int16, torch.int32,
    ]  # fmt: skip


def test_a_shard_is_opened_once_and_when_it_is_needed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = shards.read_shard
    monkeypatch.setattr(shards, "read_shard", lambda path: (opened.append(path.name), real(path))[1])
    source = read(cache).build(BLANK).source("train")
    assert not opened
    for index in ([25], [23, 20], [35, 29]):
        source.get(torch.tensor(index))
    assert opened == ["train-00002.safetensors", "train-00003.safetensors"]


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("done", [0, 2, 4])
def test_a_killed_run_goes_on_to_the_same_bytes(
    home: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException], done: int
) -> None:
    write, written = tokenize.save_file, []

    def failing(*arguments: object, **named: object) -> None:
        if len(written) == done:
            raise stop("killed")
        written.append(arguments)
        write(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(tokenize, "save_file", failing)
    with pytest.raises((stop, Interrupted)):
        make(home, tmp_path)
    with pytest.raises(DataError, match="unfinished token cache; run the same `softdimo tokenize` again"):
        read(tmp_path).build(BLANK)
    monkeypatch.setattr(tokenize, "save_file", lambda *a, **k: (written.append(a), write(*a, **k)))
    make(home, tmp_path)
    assert len(written) == 5  # none twice
    assert files(tmp_path) == files(cache)


def test_a_finished_cache_is_left_alone_and_a_lost_shard_made_again(
    home: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(copy)
    (copy / "train-00001.safetensors").unlink()
    make(home, copy)
    assert files(copy) == before
    monkeypatch.setattr(tokenize, "save_file", lambda *a, **k: pytest.fail("wrote again"))
    make(home, copy, verify=True)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("tokenizer.weights={home}/1.safetensors", r"tokenizer\.digest: \w+ there, \w+ here"),
        ("data.seed=1", r"data\.digest: "),
        ("data.crop=fit", r"data\.digest: "),
        ("data.mirror=true", r"splits\.train\.count: 36 there, 72 here"),
    ],
)
def test_another_cache_is_refused_with_what_differs(home: Path, copy: Path, change: str, what: str) -> None:
    before = files(copy)
    with pytest.raises(DataError, match=f"(?s)holds another token cache; give another --out.*{what}"):
        make(home, copy, change.format(home=home))
    assert files(copy) == before


def test_stray_shards_of_another_cache_are_refused(home: Path, copy: Path) -> None:
    (copy / shards.INDEX).unlink()
    with pytest.raises(DataError, match="belongs to another token cache"):
        make(home, copy, "data.seed=1")


def test_mirrored_copies_come_last_and_are_no_reference(home: Path, tmp_path: Path) -> None:
    make(home, tmp_path, "data.mirror=true")
    data, images = read(tmp_path).build(BLANK), Components(loaded(home, "data.mirror=true").recipe)
    assert (len(data.source("train")), len(data.reference()), len(data.source("held_out"))) == (72, 36, 4)
    picture = images.data.source("train").get(torch.tensor([5])).images
    assert picture is not None
    expected = images.require_tokenizer().encode(picture.flip(-1))
    assert torch.equal(data.source("train").get(torch.tensor([TRAIN + 5])).tokens, expected)  # type: ignore[arg-type]
    assert torch.equal(
        data.reference().get(torch.tensor([5])).tokens,
        data.source("train").get(torch.tensor([5])).tokens,  # type: ignore[arg-type]
    )


def test_ranks_share_the_shards_and_write_the_cache_of_one(home: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    words = ["tokenize", home / "0.yaml", f"tokenizer.weights={home}/0.safetensors", "--out", out]
    words += ["--shard-size", SHARD, "--batch-size", 4]
    both = ranks.commands(2, words, tmp_path)
    assert [command.wait(120) for command in both] == [0, 0], [command.said for command in both]
    assert files(out) == files(cache)


TEACHER = "teacher: {use: compact, width: 16, depth: 2, heads: 2, weights: "
STUDENT = """\
train:
  iterations: 2
  batch_size: 4
  terms: [{use: dimo}, {use: gan, weight: 0.1, discriminator: {use: teacher_features, hidden: 4}}]
"""


def test_training_on_a_cache_is_training_on_its_images(home: Path, cache: Path, tmp_path: Path) -> None:
    plain = (
        (home / "0.yaml").read_text().replace("path: images", f"path: {home}/images").replace("cpu}", "cpu, jobs: 1}")
    )
    text = plain.replace("width: 4}", f"width: 4, weights: {home}/0.safetensors}}") + TEACHER
    path, weights = tmp_path / "student.yaml", tmp_path / "teacher.safetensors"
    path.write_text(text + "null}\n")
    save_weights(weights, Components(recipes.load(path).recipe).require_teacher().state_dict())
    path.write_text(f"{text}{weights}}}\n{STUDENT}")
    found = []
    for name, data in (("images", []), ("tokens", [f"data={{use: tokens, path: {cache}, size: 8}}"])):
        folder = run.run(recipes.load(path, data), tmp_path / name, say=lambda text: None)
        found.append(read_weights(folder / "live.safetensors"))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())
    absent = recipes.load(path, ["data={use: tokens, path: absent, size: 8, classes: 2}"], smoke=True)
    folder = run.run(absent, tmp_path / "smoke", say=lambda text: None)
    assert (folder / "weights.safetensors").is_file()
    assert "random: 64" in (folder / "recipe.yaml").read_text()  # whoever reads it knows


# What cannot be tokenized


def test_what_has_no_images_or_no_weights_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data `labels` has no images to encode"):
        make(home, tmp_path, "data={use: labels, classes: 2, size: 8}")
    with pytest.raises(PluginError, match="the tokenizer `conv_vq` has no `weights:`"):
        make(home, tmp_path, "tokenizer.weights=null")
