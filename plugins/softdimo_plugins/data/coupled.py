"""Two coupled coins as images of two pixels: the smallest data that no factorized step can draw."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from softdimo.kinds import Context
from softdimo.spec import NonNegative, Spec
from softdimo_plugins.data.arrays import ArrayData


def _whole(joint: tuple[float, ...]) -> tuple[float, ...]:
    if not math.isclose(sum(joint), 1.0, abs_tol=1e-6):
        raise ValueError(f"the probabilities sum to {sum(joint):g}, not to 1")
    return joint


Joint = Annotated[tuple[NonNegative, ...], AfterValidator(_whole)]
"""Probabilities of all token sequences, in the order of their digits: 00, 01, 10, 11."""


class Coupled(Spec):
    """Black-and-white images of 1 x 2 pixels, one class: pairs of bits in proportion to a joint distribution.

    With the tokenizer `gray` of two levels the pixels are the tokens.
    """

    joint: Annotated[Joint, Field(min_length=4, max_length=4)] = (0.4, 0.1, 0.1, 0.4)
    """Probabilities of the pairs 00, 01, 10, 11; 1 is white."""
    samples: Annotated[int, Field(ge=10)] = 1000
    """Images in all: of each pair its share, to within one."""
    held_out: Annotated[int, Field(ge=1)] = 200
    """Images kept out of training."""
    seed: int = 0
    """Seed of the split."""

    def build(self, context: Context) -> ArrayData:
        """Lay the pairs out and split them."""
        ends = np.rint(np.cumsum(self.joint) / sum(self.joint) * self.samples).astype(np.int64)
        pair = np.searchsorted(ends, np.arange(self.samples), side="right")
        images = (np.stack([pair // 2, pair % 2], -1) * 255).astype(np.uint8).reshape(-1, 1, 1, 2)
        return ArrayData(images, np.zeros(self.samples, np.int64), ("pair",), self.held_out, self.seed)
