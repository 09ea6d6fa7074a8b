"""Tiny networks and data whose answers are known, for the tests of sampling, evaluation and search."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softdimo.kinds import Batch, Cond, Context, Data, Features, ImageShape, Output, Teacher, Tokenizer, TokenShape
from softdimo.math.init import Init
from softdimo_plugins.samplers.one_step import OneStep

SHAPE = TokenShape(2, 3, 2, 5)
IMAGE = ImageShape(1, 4, 6)
CLASSES = ("ant", "bee", "cow")


class CountingTeacher(Teacher):
    """One mixing layer over positions plus a table per class. Counts passes, rows and units with logits."""

    def __init__(self, shape: TokenShape = SHAPE, width: int = 8, strength: float = 1.0, classes: int = 3) -> None:
        super().__init__()
        self.shape, self.width, self.depth = shape, width, 1
        rng = torch.Generator().manual_seed(7)
        self.table = nn.Parameter(0.3 * torch.randn(shape.G, shape.V + 1, width, generator=rng))
        self.mix = nn.Parameter(torch.randn(shape.L, shape.L, generator=rng) / shape.L**0.5)
        self.out = nn.Parameter(torch.randn(width, shape.G * shape.V, generator=rng) * strength)
        self.classes = nn.Parameter(torch.randn(classes + 1, shape.L, shape.G, shape.V, generator=rng) * strength)
        self.calls, self.rows, self.units = 0, 0, 0
        self.eval()

    def embed(self, tokens):
        return sum(self.table[g][tokens[..., g]] for g in range(self.shape.G))

    def soften(self, probs, mask=None):
        raise NotImplementedError

    def forward(self, e, cond, at=None, features=()):
        assert len(e) == len(cond)
        self.calls += 1
        self.rows += len(e)
        h = torch.tanh(torch.einsum("kl,bld->bkd", self.mix, e))
        z = (h @ self.out).view(len(e), self.shape.L, self.shape.G, self.shape.V) + self.classes[cond.labels]
        self.units += z[..., 0].numel() if at is None else int(at.sum())
        return Output(z if at is None else z[at])

    def table_rms(self):
        return self.table[:, :-1].square().mean().sqrt()


class Painter(Tokenizer):
    """A random linear decoder with a sigmoid; `encode` reads brightness."""

    def __init__(self, shape: TokenShape = SHAPE, image: ImageShape = IMAGE) -> None:
        super().__init__()
        self.shape, self.image = shape, image
        rng = torch.Generator().manual_seed(8)
        units = shape.L * shape.G * shape.V
        self.paint = nn.Parameter(torch.randn(units, image.C * image.H * image.W, generator=rng) / shape.units**0.5)

    def encode(self, img):
        level = (img.mean((1, 2, 3)) * self.shape.V).long().clamp(0, self.shape.V - 1)
        return level.view(-1, 1, 1).expand(-1, self.shape.L, self.shape.G)

    def decode_soft(self, probs, cond=None):
        return (probs.flatten(1) @ self.paint).sigmoid().view(-1, *self.image)

    def decode(self, tokens, cond=None):
        return self.decode_soft(nn.functional.one_hot(tokens, self.shape.V).float(), cond)


class Pooled(Features):
    """Fixed random features; logits from them. Counts passes."""

    def __init__(self, seed: int = 0, width: int = 4, classes: int = 3, image: ImageShape = IMAGE) -> None:
        super().__init__()
        self.width = width
        rng = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(image.C * image.H * image.W, width, generator=rng))
        self.v = nn.Parameter(torch.randn(width, classes, generator=rng))
        self.calls = 0

    def forward(self, img):
        self.calls += 1
        features = img.flatten(1) @ self.w
        return features, features @ self.v


class Identity(Features):
    """Images are their own features [B F] and logits."""

    width = 0

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, img):
        self.calls += 1
        return img.flatten(1), img.flatten(1)


class Blobs(Data):
    """Random images; class k is brighter than class k - 1."""

    image, classes = IMAGE, CLASSES

    def __init__(self, train: int = 60, held_out: int = 30) -> None:
        self.sizes = {"train": train, "held_out": held_out}

    def source(self, split):
        n = self.sizes[split]
        rng = torch.Generator().manual_seed(len(split))
        labels = torch.arange(n) % 3
        images = (torch.rand(n, *IMAGE, generator=rng) * 0.4 + 0.2 * labels.view(-1, 1, 1, 1)).clamp(0, 1)
        return Stored(images, labels)


class Stored:
    """A split in memory."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def get(self, index):
        return Batch(Cond(self.labels[index]), images=self.images[index])


class Failing:
    """A one-step sampler that counts its calls and raises after some."""

    def __init__(self, after=10**9, error=KeyboardInterrupt):
        self.inner, self.calls, self.after, self.error = OneStep(init=Init()), 0, after, error

    def __repr__(self):
        return "Failing"

    def passes(self):
        return 1.0

    def sample(self, net, cond, rng):
        if self.calls == self.after:
            raise self.error
        self.calls += 1
        return self.inner.sample(net, cond, rng)


def labels(n: int) -> Cond:
    return Cond(torch.arange(n) % 3)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context(**changes) -> Context:
    """A bare context; `make` gives the module that a test puts in place of a network's settings."""
    return Context(IMAGE, CLASSES, make=lambda spec: spec, tokens=SHAPE, **changes)


def points(n, width=3, seed=0, dtype=torch.float32):
    return torch.randn(n, width, generator=rng(seed), dtype=dtype)


def images(x):
    """Points [N F] as images whose features they are."""
    return x[:, None, None, :]


def measure(metric, real, fake, cond=None, batch=10_000):
    """A metric's numbers of points against reference points."""
    for part in real.split(batch):
        metric.reference(images(part), labels(len(part)))
    metric.reset()
    for part in fake.split(batch):
        metric.update(images(part), cond or labels(len(part)))
    return metric.result()


def variant(base, **members):
    """A subclass with some members replaced."""
    return type("Variant", (base,), members)


def refused(message):
    """The block raises an AssertionError that says this (a regular expression)."""
    return pytest.raises(AssertionError, match=message)
