"""MaskGen's sampler (arXiv 2501.07730): MaskGIT's with Gumbel noise on the logits and confidence in logits."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from softdimo.kinds import Cond, Teacher
from softdimo.math.guidance import Guidance
from softdimo.math.noise import gumbel
from softdimo.math.schedules import mask_ratio
from softdimo.spec import NonNegative
from softdimo_plugins.samplers.maskgit import MaskGIT, most_confident


class MaskGen(MaskGIT):
    """Step i has progress u = (i + 1) / steps and the noise T = choice_temperature (1 - u), 0 at the last step.

    Logits are divided by tau = 0.5 + 0.8 (1 - u); a token is arg max of logits + T Gumbel (no exact draw, unless T is
    1), and the confidence in it is its logit + T Gumbel. The defaults are those of the public weights.

    What the public code's guidance scale g means here, by its decay:

    | decay         | scale         | start         | ramp                   |
    |---------------|---------------|---------------|------------------------|
    | cosine        | 1 + g         | 2             | cosine, the same power |
    | linear        | 1 + g         | 2             | linear                 |
    | none          | 1 + g         |               | constant               |
    | flippedcosine | (5 - g) / 2   | (3 + g) / 2   | cosine, the same power |
    """

    guidance: Guidance = Guidance(scale=13.0, ramp="cosine", start=2.0)
    """Scale over the steps: step i has progress (i + 1) / steps."""
    choice_temperature: NonNegative = 2.0
    """Weight of both Gumbel noises before the first step, falling linearly to 0 at the last step."""
    annealing: bool = True
    """Divide by tau; otherwise by T, as the public code can. That is 0 at the last step, so that the first class with a
    positive logit wins there: for comparisons, not for pictures."""
    score_noise: bool = True
    """Gumbel noise on the confidence too."""

    def progress(self, step: int) -> float:
        """1 / steps at the first step, 1 at the last."""
        return (step + 1) / self.steps

    def tau(self, step: int) -> float:
        """What divides the logits at a step, beside `temperature`."""
        return 0.5 + 0.8 * (1 - self.progress(step)) if self.annealing else self.noise(step)

    def counts(self, net: Teacher) -> list[int]:
        """Units committed at each step: floor(units r(u)) stay masked, in float32, and one more than none at least.

        Each step but the last leaves at least one, so with more steps than units some commit none.
        """
        units = net.shape.units
        ratio = mask_ratio(self.schedule, torch.tensor([self.progress(i) for i in range(self.steps - 1)]))
        left = [units]
        for n in (units * ratio).floor().tolist():
            left.append(max(1, min(left[-1] - 1, int(n))))
        return [before - after for before, after in pairwise([*left, 0])]

    def predict(
        self, net: Teacher, tokens: Int[Tensor, "B units"], cond: Cond, at: Bool[Tensor, "B units"], step: int
    ) -> Float[Tensor, "B n V"]:
        """As for every sampler, over tau."""
        return super().predict(net, tokens, cond, at, step) / self.tau(step)

    def draw(self, z: Float[Tensor, "B m V"], step: int, rng: torch.Generator) -> Int[Tensor, "B m"]:
        """arg max of logits + T Gumbel."""
        return (z + self.noise(step) * gumbel(z, rng) if self.noise(step) else z).argmax(-1)

    def choose(
        self, z: Float[Tensor, "B m V"], drawn: Int[Tensor, "B m"], n: int, step: int, rng: torch.Generator
    ) -> Int[Tensor, "B n"]:
        """The n of the largest logits, with T Gumbel if there is noise on scores."""
        score = z.gather(-1, drawn[..., None])[..., 0]
        noise = gumbel(score, rng) if self.score_noise else torch.zeros_like(score)
        return most_confident(score, noise, n, self.noise(step))
