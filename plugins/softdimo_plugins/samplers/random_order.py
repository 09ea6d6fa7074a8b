"""Ancestral sampling of a masked diffusion model: units are revealed in uniformly random order."""

from __future__ import annotations

import torch

from softdimo.kinds import Cond, Teacher
from softdimo.shapes import Tokens
from softdimo_plugins.samplers.iterative import Iterative


class RandomOrder(Iterative):
    """Reveal a fixed number of random units per step. Unlike the order by confidence it does not seek modes."""

    def sample(self, net: Teacher, cond: Cond, rng: torch.Generator) -> Tokens:
        """Tokens [B L G] in [0, V). The head runs at the units that the step reveals, nowhere else."""
        order = torch.rand(len(cond), net.shape.units, generator=rng, device=rng.device).argsort(1)
        return self.in_order(net, cond, order.to(cond.labels.device), rng)
