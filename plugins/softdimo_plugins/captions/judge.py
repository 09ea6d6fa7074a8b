"""Is an image what its caption says? The pieces of the image, each named by a classifier, against the caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Cond, Features
from softdimo.shapes import Image
from softdimo_plugins.captions.grammar import Caption, Group, parse
from softdimo_plugins.captions.pieces import find
from softdimo_plugins.captions.scenes import PALETTE


class Seen(NamedTuple):
    """One thing in an image."""

    animal: str
    color: str
    x: float
    y: float
    """Center of mass, in pixels."""


class Judge:
    """Finds the things in images, and compares them with captions."""

    def __init__(self, classifier: Features, animals: Sequence[str]) -> None:
        self.classifier, self.animals = classifier, tuple(animals)

    @torch.no_grad()
    def look(self, img: Image) -> list[list[Seen]]:
        """The things in each image [B 3 H W]."""
        pieces = find(img.float())
        found: list[list[Seen]] = [[] for _ in img]
        if len(pieces):
            names = self.classifier(pieces.crops)[1].argmax(-1)
            rows = zip(
                pieces.image.tolist(), names.tolist(), pieces.color.tolist(), pieces.center.tolist(), strict=True
            )
            for image, name, color, (x, y) in rows:
                found[image].append(Seen(self.animals[name], list(PALETTE)[color], x, y))
        return found

    def __call__(self, img: Image, cond: Cond) -> Bool[Tensor, "B"]:
        """Whether each image shows what its caption says and nothing else. DataError where there are no captions."""
        captions = read(cond)
        return torch.tensor(
            [shows(seen, c) for seen, c in zip(self.look(img), captions, strict=True)], device=img.device
        )


def read(cond: Cond) -> list[Caption]:
    """What the captions of conditions say. DataError where there are none, or they are not of the grammar."""
    if not cond.prompts:
        raise DataError("these conditions have no captions; use the data set `captions`")
    return [parse(prompt) for prompt in cond.prompts]


def shows(seen: Sequence[Seen], caption: Caption) -> bool:
    """Whether things are those of a caption, as many, where it puts them, and no others.

    A relation holds where the centers of all things of the first group are on that side of those of the second.
    """
    if len(seen) != sum(group.count for group in caption.groups):
        return False
    sides = [[thing for thing in seen if _belongs(thing, group)] for group in caption.groups]
    if any(len(side) != group.count for side, group in zip(sides, caption.groups, strict=True)):
        return False
    axis = "x" if caption.relation in ("left of", "right of") else "y"
    places: list[list[float]] = [[getattr(thing, axis) for thing in side] for side in sides]
    match caption.relation:
        case "left of" | "above":
            return max(places[0]) < min(places[1])
        case "right of" | "below":
            return min(places[0]) > max(places[1])
    return True


def _belongs(thing: Seen, group: Group) -> bool:
    return thing.animal == group.animal and group.color in (None, thing.color)
