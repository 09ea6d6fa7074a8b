"""Reading a token cache: refused where it is not what it says, and done without in a trial alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from softdimo.build import Components
from softdimo.errors import DataError
from softdimo.inputs import shards, tokenize
from softdimo.testing import check_data
from tests.caches import BLANK, TRAIN, loaded, make, parts, read
from tests.caches import cache as cache
from tests.caches import copy as copy
from tests.caches import home as home

# What can be wrong with a cache, one clear error each


def rewrite(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    index = json.loads((folder / shards.INDEX).read_text())
    change(index)
    (folder / shards.INDEX).write_text(json.dumps(index))


def flip(path: Path) -> None:
    """Another byte at the end; the size stays."""
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


FIRST = "train-00000.safetensors"
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda p: (p / shards.INDEX).unlink(), r"no token cache: there is no index.json; make one with"),
    "no folder": (shutil.rmtree, r"no token cache: there is no index.json; make one with `softdimo tokenize"),
    "no JSON": (lambda p: (p / shards.INDEX).write_text("{"), r"index\.json is damaged \(Expecting"),
    "no index at all": (lambda p: (p / shards.INDEX).write_text("[]"), r"index\.json is damaged"),
    "a key is lost": (lambda p: rewrite(p, lambda i: i.pop("tokens")), r"index\.json is damaged \(tokens: Field req"),
    "a path": (
        lambda p: rewrite(p, lambda i: i["splits"]["train"]["shards"][0].update(file="../x")),  # type: ignore[index]
        r"index\.json is damaged \(splits\.train\.shards\.0\.file",
    ),
    "a later format": (lambda p: rewrite(p, lambda i: i.update(format=2)), r"has the format 2, and this softdimo"),
    "a shard is lost": (lambda p: (p / FIRST).unlink(), rf"{FIRST} is missing"),
    "a shard is truncated": (lambda p: truncate(p / FIRST), rf"{FIRST} has \d+ bytes, not \d+"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_cache_is_told_before_anything_is_read(copy: Path, name: str) -> None:
    damage, message = WRONG[name]
    damage(copy)
    with pytest.raises(DataError, match=message):
        read(copy).build(BLANK)
    with pytest.raises(DataError, match=message):
        read(copy).content()


def test_a_changed_shard_is_found_by_its_hash(home: Path, copy: Path) -> None:
    flip(copy / FIRST)
    data = read(copy).build(BLANK)
    with pytest.raises(DataError, match=rf"{FIRST} was changed after it was written"):
        read(copy, verify=True).build(BLANK)
    with pytest.raises(DataError, match=rf"{FIRST} was changed after it was written"):
        make(home, copy, verify=True)
    (copy / FIRST).write_bytes(bytes(8) + (copy / FIRST).read_bytes()[8:])
    with pytest.raises(DataError, match=rf"{FIRST} is not a readable shard"):
        data.source("train").get(torch.tensor([0]))


def test_tokens_that_are_none_are_not_handed_on(copy: Path) -> None:
    rewrite(copy, lambda i: i.update(tokens=[2, 2, 1, 3]))
    with pytest.raises(DataError, match=r"holds tokens outside 0 to 2; find what was changed with .* --verify"):
        read(copy).build(BLANK).source("train").get(torch.arange(TRAIN))
    rewrite(copy, lambda i: i.update(classes=["cats"]))
    with pytest.raises(DataError, match="holds labels outside 0 to 0"):
        read(copy).build(BLANK).source("train").get(torch.arange(TRAIN))


def test_a_shard_of_another_shape_is_not_handed_on(copy: Path) -> None:
    rewrite(copy, lambda i: i.update(tokens=[2, 3, 1, 16]))
    with pytest.raises(DataError, match="is not what the index says"):
        read(copy).build(BLANK).source("train").get(torch.tensor([0]))


def test_tokens_of_other_images_are_found(home: Path, copy: Path) -> None:
    index = shards.read_index(copy)
    tokens, labels, _ = shards.read_shard(copy / FIRST)
    tokenize.save_file(
        {"tokens": tokens.flip(0).contiguous(), "labels": labels.clone()}, copy / FIRST, {shards.PLAN: index.digest()}
    )
    with pytest.raises(DataError, match=r"holds other tokens than its data and tokenizer make: of 160 .* are the same"):
        make(home, copy)


def test_another_tokenizer_is_refused(home: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"tokens of another tokenizer: `conv_vq` with the weights \w{12}, and the rec"):
        _ = parts(home, cache, weights=1).tokenizer
    with pytest.raises(DataError, match=r"tokens of another tokenizer"):
        parts(home, cache, weights=1).context()
    data = f"data={{use: tokens, path: {cache}, size: 8}}"
    wide = loaded(home, data, "tokenizer.weights=null", "tokenizer.codebook=32").recipe
    for device in ("cpu", "meta"):
        with pytest.raises(
            DataError, match=r"2 x 2 x 1 of 16 classes, and the recipe's tokenizer makes 2 x 2 x 1 of 32"
        ):
            _ = Components(wide, device).tokenizer
    assert Components(loaded(home, data, weights=1).recipe, "meta").tokenizer is not None  # no weights to tell from


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 16}, r"tokens of images 3 x 8 x 8, and the recipe says 3 x 16 x 16; set data\.size"),
        ({"channels": 1}, "and the recipe says 1 x 8 x 8"),
        ({"classes": 3}, r"has 2 classes, and data\.classes names 3"),
    ],
)
def test_settings_must_be_those_of_the_cache(cache: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(cache, **settings).build(BLANK)


def test_names_can_be_given(cache: Path) -> None:
    assert read(cache, classes=["a", "b"]).build(BLANK).classes == ("a", "b")


# Without a cache, in a trial alone


def test_smoke_needs_no_cache_and_nothing_else_does_without(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = read(tmp_path / "absent", classes=2)
    with pytest.raises(DataError, match="no token cache"):
        spec.build(BLANK)
    small = spec.smoke()
    assert (spec.random, small.random, small.content()) == (0, 64, "")
    data = small.build(BLANK)
    assert "random tokens stand in" in caplog.text
    with pytest.raises(DataError, match="add a `tokenizer:` section"):
        data.source("train").get(torch.tensor([0]))
    data.meet(Components(loaded(home).recipe).require_tokenizer())
    batch = next(data.stream(8, 0))
    assert batch.tokens is not None
    assert batch.tokens.shape == (8, 4, 1)
    check_data(lambda context: _met(small.build(context), home))


def _met(data: object, home: Path) -> object:
    data.meet(Components(loaded(home).recipe).require_tokenizer())  # type: ignore[attr-defined]
    return data
