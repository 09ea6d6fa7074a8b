"""Meissonic's sampler (arXiv 2410.08261), which is aMUSEd's (arXiv 2401.01808): MaskGIT's with other schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from softdimo.kinds import Cond, Teacher
from softdimo.math.guidance import Guidance
from softdimo.math.schedules import Schedule, masked_counts
from softdimo.spec import NonNegative
from softdimo_plugins.samplers.maskgit import MaskGIT


class Meissonic(MaskGIT):
    """Draw a token at every masked unit, keep the most confident ones. The network is told how many steps remain.

    That is the tensor `timestep` [B] of the conditions: steps - 1 at the first step, 0 at the last. Networks that know
    no time leave it alone.
    """

    steps: Annotated[int, Field(ge=1)] = 48
    """Steps; a guided step costs two network passes. Published runs have 64, or 48."""
    schedule: Schedule = "cosine"
    """How many units each step commits."""
    guidance: Guidance = Guidance(scale=9.0)
    """Scale over the steps, constant in the public code."""
    choice_temperature: NonNegative = 2.0
    """Weight of the Gumbel noise on log p at the first step, from where it falls linearly."""
    last_choice_temperature: NonNegative = 0.0
    """Its weight at the last step. The public code: 0 where it is given both, 0.01 where it is given the first."""

    def noise(self, step: int) -> float:
        """Weight of the Gumbel noise at a step."""
        first, last = self.choice_temperature, self.last_choice_temperature
        return first + (last - first) * self.progress(step)

    def counts(self, net: Teacher) -> list[int]:
        """Units committed at each step. Raises RecipeError where there are more steps than units."""
        masked = masked_counts(self.schedule, self.steps, net.shape.units)
        return [a - b for a, b in zip(masked, [*masked[1:], 0], strict=True)]

    def predict(
        self, net: Teacher, tokens: Int[Tensor, "B units"], cond: Cond, at: Bool[Tensor, "B units"], step: int
    ) -> Float[Tensor, "B n V"]:
        """As for every sampler, with the steps that remain."""
        remaining = torch.full((len(cond),), float(self.steps - 1 - step), device=cond.labels.device)
        told = replace(cond, tensors={**cond.tensors, "timestep": remaining})
        return super().predict(net, tokens, told, at, step)
