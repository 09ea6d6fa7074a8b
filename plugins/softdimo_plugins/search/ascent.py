"""Steps uphill for test-time search, in units of the embedding table, each sample by itself."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from softdimo.shapes import Embedding

Optimizer = Literal["adam", "sgd", "normalized"]
_BETAS, _EPS = (0.9, 0.999), 1e-8


class Ascent:
    """e <- e + length * direction(g), with g the gradient in u = e / unit [N L D] and length = lr * unit.

    `adam`: running mean over running root mean square, coordinate by coordinate, so a step moves each by about
    `length`. `sgd`: g itself. `normalized`: g over its root mean square in the sample, so a step moves the sample by
    exactly `length` in the root mean square, however steep the reward is. The last two take `momentum`, with Nesterov's
    look ahead if asked (Sutskever et al. 2013, as torch's SGD has it). `clip` bounds the norm of each sample's g first.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        length: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        clip: float | None = None,
    ) -> None:
        self.optimizer, self.length, self.momentum, self.nesterov = optimizer, length, momentum, nesterov
        self.clip, self.steps = clip, 0
        self.mean: Tensor | None = None
        self.square: Tensor | None = None

    def step(self, e: Embedding, gradient: Embedding) -> Embedding:
        """The next point."""
        g = gradient
        if self.clip is not None:
            g = g * (self.clip / _norm(g).clamp_min(torch.finfo(g.dtype).tiny)).clamp(max=1.0)
        self.steps += 1
        direction = self._adam(g) if self.optimizer == "adam" else self._heavy(g)
        if self.optimizer == "normalized":
            rms = _norm(direction) / direction[0].numel() ** 0.5
            direction = direction / rms.clamp_min(torch.finfo(g.dtype).tiny)
        return e + self.length * direction

    def _adam(self, g: Tensor) -> Tensor:
        if self.mean is None or self.square is None:
            self.mean, self.square = torch.zeros_like(g), torch.zeros_like(g)
        self.mean.lerp_(g, 1 - _BETAS[0])
        self.square.lerp_(g.square(), 1 - _BETAS[1])
        mean, square = self.mean / (1 - _BETAS[0] ** self.steps), self.square / (1 - _BETAS[1] ** self.steps)
        return mean / (square.sqrt() + _EPS)

    def _heavy(self, g: Tensor) -> Tensor:
        if not self.momentum:
            return g
        self.mean = g.clone() if self.mean is None else self.mean.mul_(self.momentum).add_(g)
        return g + self.momentum * self.mean if self.nesterov else self.mean


def _norm(g: Tensor) -> Tensor:
    """Euclidean norm of each sample [N 1 1]."""
    norm: Tensor = g.flatten(1).norm(dim=1)
    return norm.view(-1, 1, 1)
