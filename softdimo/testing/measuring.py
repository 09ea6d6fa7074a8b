"""Contracts of what is measured with and learned from: metrics and data sets."""

from __future__ import annotations

import json
import math
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from softdimo.kinds import Batch, Cond, Context, Data, ImageShape, Metric, Source
from softdimo.testing.claims import labels, need, no_global_randomness, rng, unchanged, works
from softdimo.testing.tiny import context

IMAGES = 48
"""Of the reference, and generated."""
PROMPTS = ("a bird", "two cats", "a dog left of a bird", "a red dog", "three birds")


def check_metric(
    build: Callable[[Context], Metric],
    prompts: Sequence[str] = PROMPTS,
    draw: Callable[[int], Tensor] | None = None,
) -> None:
    """Numbers of the generated images since `reset` alone, in any order and batching, against one reference.

    The fingerprint is the same for the same settings, networks and reference, and another one where one of these
    changes the numbers. `build` is the settings' own: `check_metric(MyMetric().build)`. Images have labels and, in
    turn, these `prompts`. They are noise, or what `draw` gives for numbers from 0: 48 images, others for each number.
    """
    with tempfile.TemporaryDirectory(prefix="softdimo-") as folder:

        def begun(context: Context) -> Metric:
            metric = build(context)
            metric.begin("a row", (), Path(folder))
            return metric

        _check_metric(begun, prompts, draw or _noise)


def _noise(i: int) -> Tensor:
    return torch.rand(IMAGES, *context().image, generator=rng(i)) ** (1 + i)


def _check_metric(build: Callable[[Context], Metric], prompts: Sequence[str], draw: Callable[[int], Tensor]) -> None:
    cond = _conditions_of(prompts)
    real, fake, other, more = map(draw, range(4))
    whole, parts = build(context()), build(context())
    with no_global_randomness("a metric"), unchanged("a metric", images=fake, labels=cond.labels):
        with unchanged("a metric", reference=real):
            _feed(whole.reference, real, cond, IMAGES)
        _feed(parts.reference, real, cond, 7)
        printed = _fingerprint(whole), _fingerprint(parts)
        need(printed[0] == printed[1], f"the same settings and reference must have the same fingerprint: {printed}")
        numbers = _numbers(whole, fake, cond, IMAGES)
    changed = _numbers(whole, other, replace(cond, labels=torch.zeros_like(cond.labels)), IMAGES)
    need(numbers.keys() == changed.keys() and len(numbers) > 0, "a metric gives the same numbers by name, one or more")
    need(numbers != changed, "other images and labels must give other numbers")

    def close(found: dict[str, float]) -> bool:
        """Up to rounding, which is nothing next to what other images change."""
        room = {k: 0.02 * abs(changed[k] - v) + 1e-6 * max(1.0, abs(v)) for k, v in numbers.items()}
        return found.keys() == numbers.keys() and all(abs(found[k] - v) <= room[k] for k, v in numbers.items())

    order = torch.randperm(IMAGES, generator=rng(9))
    for found, what in (
        (_numbers(whole, fake, cond, IMAGES), "`reset` must forget the generated images and keep the reference"),
        (dict(whole.result()), "asked twice, the numbers must be the same"),
        (_numbers(parts, fake, cond, 5), "the numbers must not depend on how images are cut into batches"),
        (_numbers(parts, fake[order], cond[order], 11), "the numbers must not depend on the order of the images"),
        (_gathered(whole, parts, fake, cond, 5), "to `add` what another rank's `look` saw must be to `update`"),
        (_after_a_look(parts, other, cond), "`look` must change nothing"),
    ):
        need(close(found), f"{what}: {numbers} and {found}")
    need(_fingerprint(whole) == printed[0], "generated images must not change the fingerprint")
    for what, seed, reference in (("reference", 0, (real, more)), ("networks", 1, (real,))):
        metric = build(context(seed))
        for img in reference:
            _feed(metric.reference, img, cond, IMAGES)
        told = close(_numbers(metric, fake, cond, IMAGES)) or _fingerprint(metric) != printed[0]
        need(told, f"another {what}, other numbers: so the fingerprint must change, too")


def _conditions_of(prompts: Sequence[str]) -> Cond:
    return replace(labels(IMAGES), prompts=tuple(prompts[i % len(prompts)] for i in range(IMAGES)))


def _feed(take: Callable[[Tensor, Cond], None], img: Tensor, cond: Cond, batch: int) -> None:
    for first in range(0, len(img), batch):
        take(img[first : first + batch], cond[first : first + batch])


def _numbers(metric: Metric, img: Tensor, cond: Cond, batch: int) -> dict[str, float]:
    """`reset`, `update`, `result`."""
    metric.reset()
    _feed(metric.update, img, cond, batch)
    out = dict(metric.result())
    for name, value in out.items():
        finite = isinstance(value, float | int) and math.isfinite(value)
        need(finite, f"`{name}` must be a finite number, not {value!r}")
    need(all(isinstance(note, str) for note in metric.notes()), "notes are sentences")
    return out


def _gathered(metric: Metric, rank: Metric, img: Tensor, cond: Cond, batch: int) -> dict[str, float]:
    """`reset`, `add` of what another rank saw and sent, `result`."""
    metric.reset()
    for first in range(0, len(img), batch):
        seen = rank.look(img[first : first + batch], cond[first : first + batch])
        if kind := metric.seen_type:
            plain = isinstance(seen, kind) and all(isinstance(t, Tensor) for t in seen)
            need(plain, f"`look` must give a {kind.__name__} of tensors, the `seen_type`, not {seen!r}")
        metric.add(works(lambda seen=seen: pickle.loads(pickle.dumps(seen)), "sending what `look` saw"))  # type: ignore[misc]
    return dict(metric.result())


def _after_a_look(metric: Metric, img: Tensor, cond: Cond) -> dict[str, float]:
    metric.look(img, cond)
    return dict(metric.result())


def _fingerprint(metric: Metric) -> dict[str, str | int | float]:
    out = dict(metric.fingerprint())
    need(len(out) > 0, "a fingerprint says what the numbers depend on")
    plain = all(isinstance(k, str) and isinstance(v, str | int | float) for k, v in out.items())
    need(plain and json.loads(json.dumps(out)) == out, f"a fingerprint holds text and numbers by name, not {out}")
    return out


def check_data(build: Callable[[Context], Data]) -> None:
    """Two splits that stay as they are, a stream that resumes exactly and gives each rank its share, fair conditions.

    Labels or prompts alone may be drawn again and again, and nothing of them need be held out. Reads the training split
    once. `build` is the settings' own: `check_data(MyData().build)`.
    """
    blank = Context(ImageShape(1, 1, 1), (), context().make)  # data come first: nothing else is known
    data = build(blank)
    with no_global_randomness("data"):
        named = bool(data.classes) or bool(data.source("train").get(torch.arange(1)).cond.prompts)
        need(
            named and all(isinstance(c, str) for c in data.classes), "`classes` are names, one or more without prompts"
        )
        train, held = (_split(data, data.source(split), f"`{split}`") for split in ("train", "held_out"))
        need(train != held or _labels_alone(data), "`held_out` must be other samples than `train`")
        reference = _split(data, data.reference(), "the reference")
        need(reference == train[: len(reference)], "augmented copies must come last in `train`, after the reference")
        _stream(data, Counter(train))
        _conditions(data)
    print_ = data.fingerprint()
    need(isinstance(print_, str) and len(print_) > 0, f"a fingerprint is text, not {print_!r}")
    again = build(blank).fingerprint()
    need(print_ == again, f"the same settings must have the same fingerprint: {print_} and {again}")


def _split(data: Data, source: Source, what: str) -> list[bytes]:
    """The samples of a split, as bytes; each is what `data` says it is, and the same whenever it is asked for."""
    need(len(source) > 0, f"{what} must not be empty")
    out: list[bytes] = []
    for index in torch.split(torch.arange(len(source)), 1024):
        batch = source.get(index)
        _samples(data, batch, len(index), what)
        out += _bytes(batch)
    some = torch.tensor([len(source) - 1, 0, len(source) // 2])
    need(
        _bytes(source.get(some)) == [out[i] for i in some.tolist()],
        f"{what}: `get` gives the samples of its index, in that order, and the same ones each time (no augmentation)",
    )
    return out


def _samples(data: Data, batch: Batch, n: int, what: str) -> None:
    labels, images, tokens = batch.cond.labels, batch.images, batch.tokens
    need(labels.shape == (n,) and not labels.is_floating_point(), f"{what}: labels are whole numbers [{n}]")
    need(labels.max() < len(data.classes), f"{what}: labels are below the number of classes, {len(data.classes)}")
    need(labels.min() >= (-1 if batch.cond.prompts else 0), f"{what}: labels are from 0 (-1 with prompts only)")
    need((images is not None) == data.has_images, f"{what}: `has_images` must say whether a batch has images")
    if images is not None:
        need(images.shape == (n, *data.image), f"{what}: images are {[n, *data.image]}, not {list(images.shape)}")
        need(images.is_floating_point(), f"{what}: images are floating point, not {images.dtype}")
        need(images.min() >= 0 and images.max() <= 1, f"{what}: images are in [0, 1]")
    if tokens is not None:
        need(tokens.ndim == 3 and len(tokens) == n and not tokens.is_floating_point(), f"{what}: tokens are [B L G]")


def _bytes(batch: Batch) -> list[bytes]:
    """Each sample with its condition."""
    parts = [t for t in (batch.cond.labels, batch.images, batch.tokens, *batch.cond.tensors.values()) if t is not None]
    prompts = batch.cond.prompts or ("",) * len(batch)
    rows = zip(*[t.detach().cpu().contiguous().numpy() for t in parts], prompts, strict=True)
    return [b"".join(x.encode() if isinstance(x, str) else x.tobytes() for x in row) for row in rows]


def _stream(data: Data, train: Counter[bytes]) -> None:
    """Shuffled, resumable, shared among ranks."""
    size = max(1, min(len(data.source("train")) // 4, 2048))

    def drawn(n: int, seed: int = 0, size: int = size, rank: int = 0, world: int = 1) -> list[list[bytes]]:
        cursor = data.stream(size, seed, rank, world)
        return [_bytes(next(cursor)) for _ in range(n)]

    six = drawn(6)
    need(all(len(batch) == size for batch in six), f"every batch of the stream has {size} samples")
    need(six == drawn(6), "the same seed must give the same stream")
    need(six != drawn(6, seed=1), "another seed must give another stream")
    for done in (1, 3, 5):  # the last is beyond the first epoch of a small data set
        cursor = data.stream(size, 0)
        for _ in range(done):
            next(cursor)
        state = cursor.state_dict()
        need(_plain(state), f"a cursor's state is plain numbers, not {state}")
        resumed = data.stream(size, 0)
        resumed.load_state_dict(json.loads(json.dumps(dict(state))))
        need(_bytes(next(resumed)) == six[done], "a resumed stream must go on exactly where the saved one was")
    half = max(1, size // 2)
    first, second = (drawn(2, size=half, rank=rank, world=2) for rank in (0, 1))
    shares = Counter(x for batch in (*first, *second) for x in batch)
    if _labels_alone(data):
        need(set(shares) <= set(train), "labels of the stream must be those of `train`")
        need(first != second, "two ranks must not get the same labels")
    else:
        need(shares <= train, "two ranks must get disjoint shares of an epoch, each sample once and from `train`")


def _labels_alone(data: Data) -> bool:
    """Whether samples are conditions, without images or tokens."""
    batch = data.source("train").get(torch.arange(1))
    return batch.images is None and batch.tokens is None


def _plain(state: object) -> bool:
    try:
        return bool(json.loads(json.dumps(state)) == state)
    except (TypeError, ValueError):
        return False


def _conditions(data: Data) -> None:
    """Balanced over the classes, the same each time."""
    n = 2 * len(data.classes) + 1
    cond, again = data.conditions(n), data.conditions(n)
    need(len(cond) == n, f"conditions({n}) gives {n} conditions, not {len(cond)}")
    need(torch.equal(cond.labels, again.labels) and cond.prompts == again.prompts, "conditions have a fixed order")
    if (cond.labels >= 0).all():
        counts: Sequence[int] = torch.bincount(cond.labels, minlength=len(data.classes)).tolist()
        fair = len(counts) == len(data.classes) and max(counts) - min(counts) <= 1
        need(fair, f"{n} conditions must be balanced over the {len(data.classes)} classes, but come {counts} times")
