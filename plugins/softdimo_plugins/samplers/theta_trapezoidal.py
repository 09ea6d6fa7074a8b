"""The theta-trapezoidal sampler: a second-order step of the unmasking process (Ren et al. 2025, arXiv 2502.00234)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from softdimo.kinds import Cond, Teacher
from softdimo.math.guidance import Guidance, guided_logits
from softdimo.math.precision import wide
from softdimo.math.rollout import categorical
from softdimo.shapes import Mask, Tokens, UnitLogits
from softdimo.spec import Positive, Spec
from softdimo_plugins.samplers.iterative import blank


class ThetaTrapezoidal(Spec):
    """Follow masked units from t = 1 to `end`; at time t each becomes class v at the rate mu_t(v | x) = p(v | x) / t.

    A step of length h, with a_1 = 1 / (2 theta (1 - theta)) and a_2 = a_1 - 1:

    1. predictor: the jumps of mu_t(x) for theta h lead to x', at the time s = t - theta h;
    2. corrector: from there those of (a_1 mu_s(x') - a_2 mu_t(x))_+ for (1 - theta) h.

    A unit that jumps more than once in a stage stays masked. What is masked at `end` becomes its most probable class.
    A unit that is masked independently with probability t has this rate: the time is the mask ratio.
    """

    steps: Annotated[int, Field(ge=1)] = 16
    """Steps of equal length; one is two network passes, and a guided one four. At the end comes one more."""
    theta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Part of a step that the predictor takes; 0.3 to 0.5 is usual."""
    end: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Time at which the rest is filled in."""
    guidance: Guidance = Guidance()
    """Scale over the progress 1 - t."""
    temperature: Positive = 1.0
    """Divides the (guided) logits."""

    def times(self) -> list[float]:
        """The ends of the steps, from 1 to `end`."""
        return [self.end + (1 - self.end) * (1 - i / self.steps) for i in range(self.steps + 1)]

    def passes(self) -> float:
        """Network passes per sample, also where nothing is left to unmask before the end."""
        looks = [t for a, b in pairwise(self.times()) for t in (a, a - self.theta * (a - b))]
        return float(sum(1 if self.guidance.at(1 - t) == 1 else 2 for t in (*looks, self.end)))

    @torch.no_grad()
    def sample(self, net: Teacher, cond: Cond, rng: torch.Generator) -> Tokens:
        """Tokens [B L G] in [0, V)."""
        V, theta = net.shape.V, self.theta
        a_1 = 1 / (2 * theta * (1 - theta))
        x = blank(net, cond).view(len(cond), net.shape.L, net.shape.G)
        for t, after in pairwise(self.times()):
            h, masked = t - after, x == V
            mu_t = self.logits(net, x, cond, masked, t).softmax(-1) / t
            x[masked] = jump(mu_t * theta * h, rng)
            s, left = t - theta * h, x == V
            mu_s = self.logits(net, x, cond, left, s).softmax(-1) / s
            x[left] = jump((a_1 * mu_s - (a_1 - 1) * mu_t[left[masked]]).clamp_min(0) * (1 - theta) * h, rng)
        left = x == V
        x[left] = self.logits(net, x, cond, left, self.end).argmax(-1)
        return x

    def logits(self, net: Teacher, x: Tokens, cond: Cond, at: Mask, t: float) -> UnitLogits:
        """Guided logits over the temperature at the units `at` at time t."""
        z = guided_logits(net, net.embed(x), cond, self.guidance.at(1 - t), at=at)
        return wide(z[..., : net.shape.V]) / self.temperature  # never the mask, where a network has it as a class


def jump(expected: Float[Tensor, "N V"], rng: torch.Generator) -> Int[Tensor, "N"]:
    """The class of the one jump among Poisson numbers of jumps with these means; V where there is none, or several."""
    total = expected.sum(-1)
    u = torch.rand(total.shape, dtype=total.dtype, generator=rng, device=rng.device).to(total.device)
    one = u < total * (-total).exp()
    return torch.where(one, categorical(expected.log(), rng), expected.shape[-1])
