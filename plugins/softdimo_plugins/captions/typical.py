"""Silhouettes of one animal that look alike: the same pose, seen from the same side."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROUNDS = 8
"""Means that are taken, each of the silhouettes closest to the one before."""
CORE = 0.25
"""Share of the silhouettes that a mean is of."""


def prototype(shapes: Float[Tensor, "N h w"]) -> Float[Tensor, "h w"]:
    """What most silhouettes look like, up to mirroring: a trimmed mean, from the one that has the most like it."""
    core = max(1, round(CORE * len(shapes)))
    flat, flipped = shapes.flatten(1), shapes.flip(-1).flatten(1)
    apart = torch.minimum(torch.cdist(flat, flat), torch.cdist(flat, flipped))
    mean = shapes[apart.kthvalue(core, 1).values.argmin()]
    for _ in range(ROUNDS):
        rows, mirrored = closest(shapes, mean, core)
        mean = torch.where(mirrored[:, None, None], shapes[rows].flip(-1), shapes[rows]).mean(0)
    return mean


def closest(
    shapes: Float[Tensor, "N h w"], to: Float[Tensor, "h w"], n: int
) -> tuple[Int[Tensor, "n"], Bool[Tensor, "n"]]:
    """The n silhouettes closest to a shape, closest first, and which of them are so when mirrored."""
    plain, flipped = ((x - to).square().sum((1, 2)) for x in (shapes, shapes.flip(-1)))
    rows = torch.minimum(plain, flipped).argsort(stable=True)[:n]
    return rows, (flipped < plain)[rows]
