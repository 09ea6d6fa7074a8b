"""Scenes: where the animals of a caption stand, and in what color; and their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from softdimo.shapes import Image
from softdimo_plugins.captions.grammar import COLORS, OPPOSITE, Caption, Dice

PALETTE = {
    "red": (0.83, 0.15, 0.14), "yellow": (0.93, 0.78, 0.05), "green": (0.16, 0.58, 0.24), "blue": (0.12, 0.35, 0.82),
    "purple": (0.53, 0.20, 0.66),
}  # fmt: skip
"""RGB of the colors."""
CANVAS = (0.97, 0.96, 0.93)
"""RGB of the background."""
ROLLS = 40
"""Numbers that a caption and its scene take at most: 6 and 34."""
INK = 0.4
"""Level above which a pixel of a silhouette counts for its extent."""
BOX, STEP = 0.5, 0.5
"""Animals stand in boxes of this width, whose corners are on a grid of this width, in widths of the image."""
SIZE = 0.45
"""The longer side of an animal; it stands in the middle of its box."""
BOLD = 1.6
"""Animals cover so many times more of a pixel, at most all of it: thin legs and necks stay visible when small."""

Cell = tuple[float, float, float, float]
"""Left, top, width and height, in widths of the image."""


class Thing(NamedTuple):
    """One animal of a scene; lengths are in widths of the image."""

    silhouette: int
    """Number in the bank."""
    color: str
    x: float
    y: float
    """Center."""


Scene = tuple[Thing, ...]
"""Everything in one image."""


class Bank:
    """Silhouettes [N 1 h w] in [0, 1], with the square around each one's ink, in the coordinates of `grid_sample`."""

    def __init__(self, silhouettes: Float[Tensor, "N 1 h w"]) -> None:
        self.silhouettes = silhouettes
        ink = silhouettes[:, 0] > INK
        x, y = _extent(ink.any(1)), _extent(ink.any(2))
        self.center = torch.stack([x.mean(0), y.mean(0)], 1)
        self.half = torch.maximum(x[1] - x[0], y[1] - y[0]) / 2

    def shapes(self, size: int) -> Float[Tensor, "N size size"]:
        """Every silhouette, as large as a square of so many pixels."""
        theta = torch.zeros(len(self.half), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = self.half
        theta[:, :, 2] = self.center
        grid = functional.affine_grid(theta, [len(theta), 1, 2 * size, 2 * size], align_corners=False)
        return functional.avg_pool2d(functional.grid_sample(self.silhouettes, grid, align_corners=False), 2)[:, 0]

    def render(self, scenes: Sequence[Scene], size: int) -> Image:
        """Images [B 3 size size] of the scenes, antialiased."""
        images = torch.tensor(CANVAS)[:, None, None].repeat(len(scenes), 1, size, size)
        for place in range(max(map(len, scenes))):
            rows = [i for i, scene in enumerate(scenes) if len(scene) > place]
            things = [scenes[i][place] for i in rows]
            colors = torch.tensor([PALETTE[thing.color] for thing in things])[:, :, None, None]
            images[rows] = images[rows].lerp(colors, self.alpha(things, size))
        return images

    def alpha(self, things: Sequence[Thing], size: int) -> Float[Tensor, "n 1 size size"]:
        """How much of each pixel the animals cover: four samples a pixel."""
        which = torch.tensor([thing.silhouette for thing in things])
        at = 2 * torch.tensor([(thing.x, thing.y) for thing in things]) - 1
        scale = self.half[which] / SIZE
        theta = torch.zeros(len(things), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = scale
        theta[:, :, 2] = self.center[which] - scale[:, None] * at
        grid = functional.affine_grid(theta, [len(things), 1, 2 * size, 2 * size], align_corners=False)
        alpha = functional.avg_pool2d(functional.grid_sample(self.silhouettes[which], grid, align_corners=False), 2)
        return (BOLD * alpha).clamp(max=1)


def _extent(ink: Tensor) -> Float[Tensor, "2 N"]:
    """First and last coordinate in [-1, 1] of the ink in each row [N n]."""
    n = ink.shape[1]
    first, last = ink.float().argmax(1), n - ink.flip(1).float().argmax(1)
    return 2 * torch.stack([first, last]) / n - 1


def arrange(caption: Caption, bank: Mapping[str, Int[Tensor, "n"]], dice: Dice) -> Scene:
    """A scene that the caption is true of; what it leaves open is drawn. `bank` has each animal's silhouettes."""
    things = []
    for group, cells in zip(caption.groups, _cells(caption, dice), strict=True):
        for x, y, w, h in cells:
            rows = bank[group.animal]
            silhouette = int(rows[dice.number(len(rows))])
            color = group.color or dice.one(COLORS)
            left, top = (o + STEP * dice.number(round((w - BOX) / STEP) + 1) for o, w in ((x, w), (y, h)))
            things.append(Thing(silhouette, color, left + BOX / 2, top + BOX / 2))
    return tuple(things)


def _cells(caption: Caption, dice: Dice) -> list[list[Cell]]:
    """Cells for the animals of each group: the whole image, halves or quarters."""
    count = caption.groups[0].count
    if len(caption.groups) == 2:
        relation = caption.relation if caption.relation in OPPOSITE else dice.one(tuple(OPPOSITE))
        halves = _halves(relation in ("left of", "right of"))
        ordered = halves if relation in ("left of", "above") else halves[::-1]
        return [_split(half, group.count) for half, group in zip(ordered, caption.groups, strict=True)]
    if count == 1:
        return [[(0.0, 0.0, 1.0, 1.0)]]
    halves = _halves(dice.number(2) == 0)
    if count == 2:
        return [halves]
    quarters = [cell for half in halves for cell in _split(half, 2)]
    if count == 3:
        del quarters[dice.number(4)]
    return [quarters]


def _halves(side_by_side: bool) -> list[Cell]:
    return (
        [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0)] if side_by_side else [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 0.5)]
    )


def _split(half: Cell, count: int) -> list[Cell]:
    """A half as one cell, or as two quarters."""
    x, y, w, h = half
    if count == 1:
        return [half]
    return [(x, y, 0.5, 0.5), (x + w - 0.5, y + h - 0.5, 0.5, 0.5)]
