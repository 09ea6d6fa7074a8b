"""Best of N: draw N starts, keep the one with the highest score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field

from softdimo.kinds import Cond, Context, Found
from softdimo.math.best import best_of
from softdimo.shapes import Embedding, Image, PerSample
from softdimo.spec import Spec

Rows = Annotated[int, Field(ge=1)] | None


class BestOfN(Spec):
    """N independent starts per condition, N forward-equivalents. Works with any reward."""

    n: Annotated[int, Field(ge=1)] = 16
    """Starts per condition."""
    decode: Literal["argmax", "soft"] = "argmax"
    """What is scored, and what the user gets: the most probable tokens, or the soft decode."""
    rows: Rows = None
    """Images in memory at once; the `rows` of the search section when null."""

    def smoke(self) -> BestOfN:
        """Four starts."""
        return self.model_copy(update={"n": min(4, self.n)})

    def build(self, context: Context) -> BestOfN:
        """These settings, with the section's `rows` filled in."""
        return self if self.rows else self.model_copy(update={"rows": context.rows})

    def passes(self) -> float:
        """Forward-equivalents per condition."""
        return float(self.n)

    def run(
        self,
        generator: Callable[[Embedding, Cond], Image],
        score: Callable[[Image, Cond], PerSample],
        start: Callable[[Cond, torch.Generator], Embedding],
        cond: Cond,
        rng: torch.Generator,
    ) -> Found:
        """The best start of each condition."""
        e, best, trace, rewards = best_of(self.n, generator, score, start, cond, rng, self.rows)
        return Found(e, best, trace[:, None], self.passes(), rewards={name: r[:, None] for name, r in rewards.items()})
