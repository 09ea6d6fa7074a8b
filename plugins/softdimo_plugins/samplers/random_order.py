"""Ancestral sampling of a masked diffusion model: units are revealed in uniformly random order."""

from __future__ import annotations

import torch

from softdimo.kinds import Cond, Teacher
from softdimo.math.rollout import categorical
from softdimo.shapes import Tokens
from softdimo_plugins.samplers.iterative import Iterative, blank


class RandomOrder(Iterative):
    """Reveal a fixed number of random units per step. Unlike the order by confidence it does not seek modes."""

    @torch.no_grad()
    def sample(self, net: Teacher, cond: Cond, rng: torch.Generator) -> Tokens:
        """Tokens [B L G] in [0, V). The head runs at the units that the step reveals, nowhere else."""
        tokens = blank(net, cond)
        order = torch.rand(tokens.shape, generator=rng, device=rng.device).argsort(1).to(tokens.device)
        first = 0
        for step, n in enumerate(self.counts(net)):
            unit = order[:, first : first + n].sort(1).values
            at = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, unit, True)
            tokens.scatter_(1, unit, categorical(self.predict(net, tokens, cond, at, step), rng))
            first += n
        return tokens.view(len(cond), net.shape.L, net.shape.G)
