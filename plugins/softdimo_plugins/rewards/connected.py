"""Is the drawing in one piece?"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from softdimo.kinds import Cond
from softdimo.shapes import Image, PerSample
from softdimo.spec import Fraction, Spec


class Connected(Spec):
    """Fraction of the ink that belongs to the largest connected piece: 1 for one piece, 0 for no ink.

    Not differentiable. Ink is where the mean over the channels is beyond the threshold; pixels that touch at a corner
    are connected.
    """

    ink: Literal["bright", "dark"] = "bright"
    """Whether the drawing is brighter or darker than the background."""
    threshold: Fraction = 0.5
    """Level that separates ink from background."""

    differentiable: ClassVar[bool] = False

    def __call__(self, img: Image, cond: Cond) -> PerSample:
        """Score in [0, 1] of each image [B C H W]; the conditions do not matter."""
        level = img.detach().mean(1)
        ink = level > self.threshold if self.ink == "bright" else level < self.threshold
        pieces = label_pieces(ink).flatten(1)
        sizes = torch.zeros(len(img), pieces.shape[1] + 1, device=img.device)
        sizes.scatter_add_(1, pieces, torch.ones_like(pieces, dtype=sizes.dtype))
        return sizes[:, 1:].max(1).values / ink.flatten(1).sum(1).clamp(min=1)


def label_pieces(ink: Bool[Tensor, "B H W"]) -> Int[Tensor, "B H W"]:
    """Number in [1, H W] of the connected piece (8 neighbors) of each ink pixel, 0 elsewhere.

    Every pixel takes the largest number among its neighbors until nothing changes, and then the number that the pixel
    it points to has, so that long windings cost few rounds.
    """
    B, H, W = ink.shape
    # max pooling needs floats; these hold every integer up to 2^24
    number = torch.arange(1, H * W + 1, device=ink.device, dtype=torch.float32).view(1, H, W) * ink
    while True:
        wider = functional.max_pool2d(number[:, None], 3, 1, 1)[:, 0]
        index = (wider.long() - 1).clamp(min=0).flatten(1)
        jumped = wider.flatten(1).gather(1, index).view(B, H, W) * ink
        if torch.equal(jumped, number):
            return number.long()
        number = jumped
