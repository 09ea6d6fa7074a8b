"""MaskGIT's sampler: reveal the units whose drawn token the model is most confident of (Chang et al. 2022)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softdimo.kinds import Cond, Teacher
from softdimo.math.noise import gumbel
from softdimo.math.rollout import categorical
from softdimo.shapes import Tokens
from softdimo.spec import NonNegative
from softdimo_plugins.samplers.iterative import Iterative, blank


class MaskGIT(Iterative):
    """Draw a token at every masked unit, keep the most confident ones: log p + annealed Gumbel noise.

    With little noise this seeks modes: images get cleaner and less diverse, and more steps can score worse.
    """

    choice_temperature: NonNegative = 4.5
    """Weight of the Gumbel noise on log p at the first step, falling linearly to 0 at the last. 4.5 suits 256 tokens;
    shorter sequences want more (12 for 16 tokens). `random_order` is the limit of a large one."""

    def noise(self, step: int) -> float:
        """Weight of the Gumbel noise at a step."""
        return self.choice_temperature * (1 - self.progress(step))

    @torch.no_grad()
    def sample(self, net: Teacher, cond: Cond, rng: torch.Generator) -> Tokens:
        """Tokens [B L G] in [0, V). Logits are computed at masked units only."""
        tokens = blank(net, cond)
        for step, n in enumerate(self.counts(net)):
            if n == 0:
                continue
            masked = tokens == net.shape.V
            units = masked.nonzero()[:, 1].view(len(cond), -1)
            z = self.predict(net, tokens, cond, masked, step)
            drawn = self.draw(z, step, rng)
            if n < units.shape[1]:
                chosen = self.choose(z, drawn, n, step, rng)
                units, drawn = units.gather(1, chosen), drawn.gather(1, chosen)
            tokens.scatter_(1, units, drawn)
        return tokens.view(len(cond), net.shape.L, net.shape.G)

    def draw(self, z: Float[Tensor, "B m V"], step: int, rng: torch.Generator) -> Int[Tensor, "B m"]:
        """A token for every masked unit."""
        return categorical(z, rng)

    def choose(
        self, z: Float[Tensor, "B m V"], drawn: Int[Tensor, "B m"], n: int, step: int, rng: torch.Generator
    ) -> Int[Tensor, "B n"]:
        """Which n of the drawn tokens stay, as indices of masked units."""
        log_p = z.gather(-1, drawn[..., None])[..., 0] - z.logsumexp(-1)
        return most_confident(log_p, gumbel(log_p, rng), n, self.noise(step))


def most_confident(
    log_p: Float[Tensor, "B m"], noise: Float[Tensor, "B m"], n: int, temperature: float
) -> Int[Tensor, "B n"]:
    """Indices of the n largest log p + temperature * noise: exactly n per row, whatever ties there are."""
    return (log_p + temperature * noise).topk(n, dim=1).indices
