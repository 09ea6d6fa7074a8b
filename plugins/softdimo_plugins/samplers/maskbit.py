"""MaskBit's sampler (Weber et al. 2024, arXiv 2409.16211): MaskGIT's with other schedules."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from softdimo.kinds import Teacher
from softdimo.math.guidance import Guidance
from softdimo.math.schedules import masked_counts
from softdimo.spec import NonNegative
from softdimo_plugins.samplers.maskgit import MaskGIT


class MaskBit(MaskGIT):
    """Draw a token at every masked unit, keep the most confident ones; guidance begins with none.

    The defaults are those of the public 14-bit weights. The published settings (64 steps; scale is theirs plus 1):

    | bits               | 10   | 12  | 14  | 16  | 18  |
    |--------------------|------|-----|-----|-----|-----|
    | scale              | 7.4  | 8.1 | 8.1 | 7.5 | 6.7 |
    | power              | 2.5  | 3   | 3   | 2.5 | 2.5 |
    | choice_temperature | 10.5 | 8.2 | 7.8 | 7.5 | 8.5 |
    """

    steps: Annotated[int, Field(ge=1)] = 64
    """Steps; a guided step costs two network passes."""
    guidance: Guidance = Guidance(scale=8.1, ramp="cosine", power=3.0)
    """Scale over the steps: step i has progress i / steps, so that the first of a ramp is not guided."""
    choice_temperature: NonNegative = 7.8
    """Weight of the Gumbel noise on log p, falling linearly: 1 - 1 / steps of it at the first step, 0 at the last."""

    def progress(self, step: int) -> float:
        """0 at the first step; 1 is never reached."""
        return step / self.steps

    def noise(self, step: int) -> float:
        """Weight of the Gumbel noise at a step."""
        return self.choice_temperature * (1 - (step + 1) / self.steps)

    def counts(self, net: Teacher) -> list[int]:
        """Units committed at each step. Raises RecipeError where there are more steps than units."""
        masked = masked_counts(self.schedule, self.steps, net.shape.units)
        return [a - b for a, b in zip(masked, [*masked[1:], 0], strict=True)]
