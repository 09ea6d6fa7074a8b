"""Scenes: where the animals of a caption stand, in what color, on what canvas; and their images."""

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
    "red": (0.83, 0.15, 0.14), "orange": (0.96, 0.53, 0.08), "yellow": (0.93, 0.82, 0.10),
    "green": (0.16, 0.58, 0.24), "blue": (0.12, 0.35, 0.82), "purple": (0.53, 0.20, 0.66),
}  # fmt: skip
"""RGB of the colors."""
CANVASES = ((0.97, 0.96, 0.93), (0.82, 0.89, 0.95), (0.87, 0.92, 0.83))
"""RGB of the backgrounds, which captions do not speak of."""
ROLLS = 40
"""Numbers that a caption and its scene take at most: 6 and 34."""
INK = 0.4
"""Level above which a pixel of a silhouette counts for its extent."""
LARGE, SMALL = (0.45, 0.75), (0.36, 0.44)
"""Sizes of one animal alone, and of one of several, in widths of the image."""
BOLD = 1.6
"""Animals cover so many times more of a pixel, at most all of it: thin legs and necks stay visible when small."""
MARGIN = 0.025
"""Least distance of an animal from the border of its cell."""

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
    size: float
    """The longer side of its bounding box."""
    mirrored: bool


class Scene(NamedTuple):
    """Everything in one image."""

    canvas: int
    things: tuple[Thing, ...]


class Bank:
    """Silhouettes [N 1 h w] in [0, 1], with the square around each one's ink, in the coordinates of `grid_sample`."""

    def __init__(self, silhouettes: Float[Tensor, "N 1 h w"]) -> None:
        self.silhouettes = silhouettes
        ink = silhouettes[:, 0] > INK
        x, y = _extent(ink.any(1)), _extent(ink.any(2))
        self.center = torch.stack([x.mean(0), y.mean(0)], 1)
        self.half = torch.maximum(x[1] - x[0], y[1] - y[0]) / 2

    def render(self, scenes: Sequence[Scene], size: int) -> Image:
        """Images [B 3 size size] of the scenes, antialiased."""
        canvases = torch.tensor(CANVASES)[[scene.canvas for scene in scenes]]
        images = canvases[:, :, None, None].repeat(1, 1, size, size)
        for place in range(max(len(scene.things) for scene in scenes)):
            rows = [i for i, scene in enumerate(scenes) if len(scene.things) > place]
            things = [scenes[i].things[place] for i in rows]
            colors = torch.tensor([PALETTE[thing.color] for thing in things])[:, :, None, None]
            images[rows] = images[rows].lerp(colors, self.alpha(things, size))
        return images

    def alpha(self, things: Sequence[Thing], size: int) -> Float[Tensor, "n 1 size size"]:
        """How much of each pixel the animals cover: four samples a pixel."""
        which = torch.tensor([thing.silhouette for thing in things])
        at = 2 * torch.tensor([(thing.x, thing.y) for thing in things]) - 1
        scale = self.half[which] / torch.tensor([thing.size for thing in things])
        across = scale * torch.tensor([-1.0 if thing.mirrored else 1.0 for thing in things])
        theta = torch.zeros(len(things), 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = across, scale
        theta[:, :, 2] = self.center[which] - torch.stack([across, scale], 1) * at
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
    canvas = dice.number(len(CANVASES))
    things = []
    for group, cells in zip(caption.groups, _cells(caption, dice), strict=True):
        for cell in cells:
            rows = bank[group.animal]
            silhouette = int(rows[dice.number(len(rows))])
            color = group.color or dice.one(COLORS)
            mirrored = dice.number(2) == 1
            low, high = LARGE if cell[2] == cell[3] == 1 else SMALL
            size = low + (high - low) * dice.fraction()
            x, y = (
                cell[axis] + MARGIN + size / 2 + (cell[axis + 2] - 2 * MARGIN - size) * dice.fraction() for axis in (0, 1)
            )
            things.append(Thing(silhouette, color, x, y, size, mirrored))
    return Scene(canvas, tuple(things))


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
    return [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0)] if side_by_side else [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 0.5)]


def _split(half: Cell, count: int) -> list[Cell]:
    """A half as one cell, or as two quarters."""
    x, y, w, h = half
    if count == 1:
        return [half]
    return [(x, y, 0.5, 0.5), (x + w - 0.5, y + h - 0.5, 0.5, 0.5)]
