"""The samplers of Halton-MaskGIT (Besnier et al. 2025): a fixed order that spreads over the grid, or confidence."""

from __future__ import annotations

from functools import lru_cache
from itertools import count, pairwise
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from softdimo.kinds import Cond, Teacher
from softdimo.math.guidance import Guidance
from softdimo.math.schedules import committed_counts
from softdimo.shapes import Tokens
from softdimo.spec import Positive
from softdimo_plugins.samplers.iterative import Iterative
from softdimo_plugins.samplers.maskgit import MaskGIT
from softdimo_plugins.samplers.truncate import truncate


class Halton(Iterative):
    """Reveal positions in the order of the Halton points (2, 3): each step's are far apart, so nearly independent.

    The published guidance for `halton` teachers at 32 steps, in this scale: 2.5 tiny, 2 small, 1.7 base, 1.5 large.
    """

    steps: Annotated[int, Field(ge=1)] = 32
    """Steps; a guided step costs two network passes."""
    guidance: Guidance = Guidance(scale=1.7)
    """Scale over the steps, constant in the public code."""
    sharpness: tuple[Positive, Positive] = (1.0, 1.0)
    """Multiplies the logits, from the first step to the last, linearly: the public code's T_min and T_max."""
    power: Positive = 1.0
    """Exponent of `sharpness`."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """First steps with half the sharpness."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Draw among the k most probable classes only."""
    randomize: bool = False
    """Start at a random place of the order, another one for every image."""

    def counts(self, net: Teacher) -> list[int]:
        """Units committed at each step. Raises RecipeError where there are more steps than units."""
        after = committed_counts(self.schedule, [(i + 1) / self.steps for i in range(self.steps)], net.shape.units)
        return [b - a for a, b in pairwise([0, *after])]

    def factor(self, step: int) -> float:
        """What multiplies the logits at a step."""
        first, last = self.sharpness
        sharpness: float = (first + (last - first) * step / max(1, self.steps - 1)) ** self.power
        return sharpness / 2 if step < self.warmup else sharpness

    def predict(
        self, net: Teacher, tokens: Int[Tensor, "B units"], cond: Cond, at: Bool[Tensor, "B units"], step: int
    ) -> Float[Tensor, "B n V"]:
        """As for every sampler, sharpened and truncated."""
        return truncate(super().predict(net, tokens, cond, at, step) * self.factor(step), self.top_k)

    def sample(self, net: Teacher, cond: Cond, rng: torch.Generator) -> Tokens:
        """Tokens [B L G] in [0, V). The head runs at the units that the step reveals, nowhere else."""
        shape = net.shape
        position = torch.tensor(halton_order(shape.rows, shape.cols))
        order = (position[:, None] * shape.G + torch.arange(shape.G)).flatten()
        start = torch.zeros(len(cond), 1, dtype=torch.long)
        if self.randomize:
            start = torch.randint(shape.units, (len(cond), 1), generator=rng, device=rng.device).cpu()
        rolled = order[(torch.arange(shape.units) + start) % shape.units]
        return self.in_order(net, cond, rolled.to(cond.labels.device), rng)


class Confidence(MaskGIT):
    """`maskgit` with the newer code's counts: the committed fraction follows the schedule itself.

    Committed tokens stay, as in `maskgit`; the public code draws them anew at every step.
    """

    def counts(self, net: Teacher) -> list[int]:
        """Units committed at each step. Raises RecipeError where there are more steps than units."""
        after = committed_counts(self.schedule, [self.progress(i) for i in range(self.steps)], net.shape.units)
        return [b - a for a, b in pairwise([0, *after])]


@lru_cache(maxsize=8)
def halton_order(rows: int, cols: int) -> tuple[int, ...]:
    """Every position row * cols + col, in the order in which the Halton points with bases 2 and 3 first fall on it."""
    found: dict[int, None] = {}
    for j in count(1):
        row, col = (size * n // d for size, (n, d) in zip((rows, cols), (_inverse(j, 2), _inverse(j, 3)), strict=True))
        found.setdefault(row * cols + col)
        if len(found) == rows * cols:
            break
    return tuple(found)


def _inverse(j: int, base: int) -> tuple[int, int]:
    """The radical inverse of j, exactly: its digits mirrored at the point, as a fraction."""
    n, d = 0, 1
    while j:
        j, digit = divmod(j, base)
        n, d = n * base + digit, d * base
    return n, d
