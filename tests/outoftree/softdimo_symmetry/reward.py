"""The reward `symmetry`."""

from typing import ClassVar

from softdimo.kinds import Cond
from softdimo.shapes import Image, PerSample
from softdimo.spec import Spec


class Symmetry(Spec):
    """Minus the mean squared difference of an image and its left-right mirror."""

    scale: float = 1.0
    """Factor of the score."""
    differentiable: ClassVar[bool] = True

    def __call__(self, img: Image, cond: Cond) -> PerSample:
        """Images [B 3 H W] in [0, 1] -> [B], at most 0."""
        return -self.scale * (img - img.flip(-1)).square().mean((1, 2, 3))
