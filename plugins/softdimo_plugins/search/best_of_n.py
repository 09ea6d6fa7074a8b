"""Best of N: draw N starts, keep the one with the highest score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field

from softdimo.kinds import Cond, Found
from softdimo.math.best import best_of
from softdimo.shapes import Embedding, Image, PerSample
from softdimo.spec import Spec


class BestOfN(Spec):
    """N independent starts per condition, N forward-equivalents. Works with any reward."""

    n: Annotated[int, Field(ge=1)] = 16
    """Starts per condition."""
    decode: Literal["argmax", "soft"] = "argmax"
    """What is scored, and what the user gets: the most probable tokens, or the soft decode."""

    def run(
        self,
        generator: Callable[[Embedding, Cond], Image],
        score: Callable[[Image, Cond], PerSample],
        start: Callable[[Cond, torch.Generator], Embedding],
        cond: Cond,
        rng: torch.Generator,
    ) -> Found:
        """The best start of each condition."""
        e, best, scores = best_of(self.n, generator, score, start, cond, rng)
        return Found(e, best, scores[:, None], float(self.n))
