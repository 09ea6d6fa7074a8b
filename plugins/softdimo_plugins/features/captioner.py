"""A small network that says how likely a caption is, given an image; a recipe trains it in a minute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import DataError
from softdimo.kinds import Cond, Context, Features, ImageShape, Logs
from softdimo.math.precision import wide
from softdimo.shapes import Image, PerSample
from softdimo.spec import NetworkSpec
from softdimo_plugins.captions.grammar import ANIMALS, COLORS, COUNTS, Caption
from softdimo_plugins.captions.judge import read
from softdimo_plugins.features.cnn import to_channels
from softdimo_plugins.layers import ChannelsLast

CELLS = 8
"""Rows and columns of the grid in which animals are looked for."""


class Captioner(NetworkSpec):
    """log p(caption | image) = sum over animals of log p(how many) + log p(their color) + log p(who is on which side).

    The captions of the data set `captions`, word for word: what a caption leaves open is left out of the sum. Each
    animal looks for itself in a grid of features; its color is read where it looks, its place is where it looks.
    """

    width: Annotated[int, Field(ge=4)] = 24
    """Channels of the first convolution; later ones have two and three times as many."""
    features: Annotated[int, Field(ge=2)] = 64
    """Width F of the features, from which numbers are read."""
    blend: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Training images fade into one another by at most so much, as soft decodes do; from 0.5 on, the other image's
    caption would be the truer one."""

    def build(self, context: Context) -> CaptionerFeatures:
        """The network for the images and animals of `context`, with fresh weights."""
        if unknown := sorted(set(context.classes) - set(ANIMALS)):
            raise DataError(f"captioner knows captions of {', '.join(ANIMALS)}, not of {', '.join(unknown)}")
        return CaptionerFeatures(self, context.image, context.classes)


class Facts(NamedTuple):
    """Captions in numbers."""

    count: Int[Tensor, "B A"]  # type: ignore[assignment]
    """How many of each animal."""
    color: Int[Tensor, "B A"]
    """Their color, -1 where a caption says none."""
    pair: Int[Tensor, "B 2"]
    """The animal that is left of or above the other, and that one."""
    axis: Int[Tensor, "B"]
    """0 for left, 1 for above, -1 where a caption says neither."""


class Opinion(NamedTuple):
    """What the network makes of images."""

    features: Float[Tensor, "B F"]
    count: Float[Tensor, "B A 5"]  # type: ignore[assignment]
    """Log-probabilities of 0 to 4 of each animal."""
    color: Float[Tensor, "B A colors"]
    """Log-probabilities of its color."""
    place: Float[Tensor, "B A 2"]
    """Its x and y, from -1 to 1."""


class CaptionerFeatures(Features):
    """The network of `Captioner`; its class logits are those of there being any of an animal."""

    def __init__(self, spec: Captioner, image: ImageShape, animals: Sequence[str]) -> None:
        super().__init__()
        self.image, self.animals, self.width, self.blend = image, tuple(animals), spec.features, spec.blend
        w, A = spec.width, len(animals)
        plan = [(image.C, w, 2), (w, 2 * w, 1), (2 * w, 2 * w, 2), (2 * w, 3 * w, 1), (3 * w, 3 * w, 1)]
        layers: list[nn.Module] = []
        for i, (before, after, stride) in enumerate(plan):
            layers.append(nn.Conv2d(before, after, 3, stride, 1, bias=False))
            layers += [*([] if i else [ChannelsLast()]), nn.BatchNorm2d(after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(CELLS))
        self.narrow = nn.Linear(3 * w * (CELLS // 2) ** 2, spec.features)
        self.numbers = nn.Linear(spec.features, A * (len(COUNTS) + 1))
        self.where = nn.Conv2d(3 * w, A, 1)
        self.tally = nn.Sequential(nn.Linear(CELLS**2, 32), nn.ReLU(), nn.Linear(32, len(COUNTS) + 1))
        self.hue = nn.Linear(3 * w, len(COLORS))
        self.sides = nn.Parameter(torch.tensor(4.0))

    def forward(self, img: Image) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B K"]]:
        """Features [B F] >= 0 and class logits [B K], in fp32."""
        seen = self.look(img)
        return seen.features, seen.count[..., 1:].logsumexp(-1) - seen.count[..., 0]

    def look(self, img: Image) -> Opinion:
        """What there is in images, which are brought to the channels and size that the network was built for."""
        img = to_channels(img, self.image.C)
        if img.shape[2:] != self.image[1:]:
            img = functional.interpolate(img, self.image[1:], mode="bilinear", antialias=True)
        h = self.trunk(2 * img - 1)
        features = wide(functional.relu(self.narrow(functional.avg_pool2d(h, 2).flatten(1))))
        evidence = self.where(h).flatten(2)
        gaze = wide(evidence).softmax(-1)
        count = self.numbers(features).unflatten(-1, (len(self.animals), -1)) + self.tally(evidence)
        color = self.hue(gaze @ wide(h.flatten(2)).mT)
        return Opinion(features, wide(count).log_softmax(-1), wide(color).log_softmax(-1), gaze @ _grid(gaze))

    def score(self, img: Image, cond: Cond) -> PerSample:
        """log p(caption | image) of each image's own caption. DataError where there are no captions."""
        return sum(self.terms(self.look(img), self.facts(read(cond))), torch.zeros(len(img), device=img.device))

    def terms(self, seen: Opinion, facts: Facts) -> tuple[PerSample, PerSample, PerSample]:
        """log p of the numbers, of the colors, and of the sides; their sum is that of the caption."""
        count = seen.count.gather(-1, facts.count[..., None])[..., 0].sum(-1)
        color = seen.color.gather(-1, facts.color.clamp(min=0)[..., None])[..., 0]
        each, axis = torch.arange(len(facts.axis), device=facts.axis.device), facts.axis.clamp(min=0)
        gap = seen.place[each, facts.pair[:, 1], axis] - seen.place[each, facts.pair[:, 0], axis]
        side = functional.logsigmoid(self.sides * gap)
        return count, (color * (facts.color >= 0)).sum(-1), side * (facts.axis >= 0)

    def loss(self, img: Image, cond: Cond, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """Minus the mean log-likelihood of the captions."""
        if self.blend:
            part = self.blend * torch.rand(len(img), 1, 1, 1, generator=rng, device=rng.device).to(img)
            img = img.lerp(img.roll(1, 0), part)
        parts = self.terms(self.look(img), self.facts(read(cond)))
        logs: Logs = {name: p.detach().mean() for name, p in zip(("numbers", "colors", "sides"), parts, strict=True)}
        return -sum(parts, torch.zeros(len(img), device=img.device)).mean(), logs

    def facts(self, captions: Sequence[Caption]) -> Facts:
        """Captions in numbers. DataError for an animal that this network does not know."""
        count = torch.zeros(len(captions), len(self.animals), dtype=torch.int64)
        color, pair = torch.full_like(count, -1), torch.zeros(len(captions), 2, dtype=torch.int64)
        axis = torch.full((len(captions),), -1)
        for i, caption in enumerate(captions):
            who = [self._number(group.animal) for group in caption.groups]
            for k, group in zip(who, caption.groups, strict=True):
                count[i, k] = group.count
                color[i, k] = COLORS.index(group.color) if group.color else -1
            if caption.relation not in ("", "and"):
                axis[i] = int(caption.relation in ("above", "below"))
                pair[i] = torch.tensor(who if caption.relation in ("left of", "above") else who[::-1])
        device = self.sides.device
        return Facts(count.to(device), color.to(device), pair.to(device), axis.to(device))

    def _number(self, animal: str) -> int:
        if animal not in self.animals:
            raise DataError(f"captioner was built for {', '.join(self.animals)}, and a caption speaks of a {animal}")
        return self.animals.index(animal)


def _grid(like: Tensor) -> Float[Tensor, "cells 2"]:
    """x and y of the middle of each cell, from -1 to 1."""
    middle = (torch.arange(CELLS, device=like.device, dtype=like.dtype) * 2 + 1) / CELLS - 1
    return torch.cartesian_prod(middle, middle).flip(-1)
