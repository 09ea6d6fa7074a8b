"""Token caches: the tokens of the images, whole after any interruption, refused where they are not what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softdimo import recipe as recipes
from softdimo import shards, tokenize
from softdimo.build import Components
from softdimo.errors import DataError, Interrupted, PluginError
from softdimo.files import save_weights
from softdimo.kinds import Context, ImageShape
from softdimo.recipe import Loaded
from softdimo.shards import Index
from softdimo.testing import check_data
from softdimo_plugins.data.tokens import Tokens

BLANK = Context(ImageShape(1, 1, 1), (), print)
TRAIN, HELD_OUT, SHARD = 36, 4, 10


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of two classes, and two tokenizers with weights."""
    folder = tmp_path_factory.mktemp("tokenize")
    rng = np.random.RandomState(0)
    for i in range(TRAIN + HELD_OUT):
        path = folder / "images" / ("cats", "dogs")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (12, 9, 3), np.uint8)).save(path)
    for seed in (0, 1):
        path = folder / f"{seed}.yaml"
        path.write_text(
            f"title: Tokens\nseed: {seed}\nhardware: {{accelerator: cpu}}\n"
            "data: {use: folder, path: images, size: 8, channels: 3, in_memory: false, crop: center}\n"
            "tokenizer: {use: conv_vq, patch: 4, codebook: 16, width: 4}\n"
        )
        state = Components(recipes.load(path).recipe).require_tokenizer().state_dict()
        noise = torch.Generator().manual_seed(seed)  # fresh codes are so small that every patch has the same one
        for value in state.values():
            if value.is_floating_point():
                value += 0.5 * torch.randn(value.shape, generator=noise)
        save_weights(folder / f"{seed}.safetensors", state)
    return folder


def loaded(home: Path, *overrides: str, weights: int = 0) -> Loaded:
    return recipes.load(home / "0.yaml", [f"tokenizer.weights={home}/{weights}.safetensors", *overrides])


def make(home: Path, out: Path, *overrides: str, **how: bool) -> Index:
    return tokenize.tokenize(
        loaded(home, *overrides), out, shard_size=SHARD, batch_size=4, say=lambda text: None, **how
    )


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.fixture(scope="module")
def cache(home: Path) -> Path:
    make(home, home / "cache")
    return home / "cache"


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "copy"))


def read(folder: Path, **settings: object) -> Tokens:
    return Tokens.model_validate({"path": str(folder), "size": 8, **settings})


def parts(home: Path, folder: Path, weights: int = 0) -> Components:
    data = f"data={{use: tokens, path: {folder}, size: 8}}"
    return Components(loaded(home, data, weights=weights).recipe)


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


def test_contract(cache: Path) -> None:
    check_data(read(cache).build)


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


# What cannot be tokenized


def test_what_has_no_images_or_no_weights_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data `labels` has no images to encode"):
        make(home, tmp_path, "data={use: labels, classes: 2, size: 8}")
    with pytest.raises(PluginError, match="the tokenizer `conv_vq` has no `weights:`"):
        make(home, tmp_path, "tokenizer.weights=null")


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
