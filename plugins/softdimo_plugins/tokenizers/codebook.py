"""A vector-quantization codebook learned by running means, with restarts of dead codes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn

DECAY = 0.99
"""Decay of the running means."""
DEAD = 0.02
"""A code used less than this fraction of the uniform rate is restarted."""


def kmeans(points: Float[Tensor, "N D"], k: int, rng: torch.Generator, rounds: int = 15) -> Float[Tensor, "k D"]:
    """Centers of k-means++ (Arthur and Vassilvitskii 2007) and `rounds` of Lloyd's iteration."""
    centers = points[_draw(torch.ones(len(points)), 1, rng).to(points.device)]
    nearest = (points - centers).square().sum(1)
    for _ in range(k - 1):
        centers = torch.cat([centers, points[_draw(nearest, 1, rng).to(points.device)]])
        nearest = torch.minimum(nearest, (points - centers[-1]).square().sum(1))
    for _ in range(rounds):
        ids = nearest_code(points, centers)
        counts, sums = tally(points, ids, k)
        centers = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centers)
    return centers


def nearest_code(points: Float[Tensor, "N D"], codes: Float[Tensor, "V D"]) -> Int[Tensor, "N"]:
    """Index of the code at the least Euclidean distance."""
    return (codes.square().sum(1) / 2 - points @ codes.T).argmin(1)


def tally(
    points: Float[Tensor, "N D"], ids: Int[Tensor, "N"], k: int
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k D"]]:
    """How many points each code has, and their sum."""
    counts = torch.bincount(ids, minlength=k).to(points.dtype)
    return counts, torch.zeros(k, points.shape[1], dtype=points.dtype, device=points.device).index_add_(0, ids, points)


def _draw(weights: Float[Tensor, "N"], n: int, rng: torch.Generator) -> Int[Tensor, "n"]:
    """`n` indices with replacement, with probability proportional to the weights (the first, if all vanish)."""
    edges = weights.double().to(rng.device).cumsum(0)
    u = torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device)
    return torch.searchsorted(edges, u * edges[-1]).clamp(max=len(edges) - 1)


class Codebook(nn.Module):
    """V codes of D numbers. Everything it learns is in buffers, so that a resumed run continues bit for bit."""

    codes: Tensor
    usage: Tensor
    means: Tensor
    started: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(size, width))
        self.register_buffer("usage", torch.full((size,), 1 / size))  # running fraction of the points
        self.register_buffer("means", torch.zeros(size, width))  # running sum of points / number of points
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, points: Float[Tensor, "N D"]) -> Int[Tensor, "N"]:
        """Index of each point's nearest code."""
        return nearest_code(points, self.codes)

    @torch.no_grad()
    def start(self, points: Float[Tensor, "N D"], rng: torch.Generator) -> None:
        """Codes by k-means of one batch of points; the other ranks take those of rank 0."""
        size = len(self.codes)
        self.codes.copy_(_from_first(kmeans(points, size, rng)))
        self.usage.fill_(1 / size)
        self.means.copy_(self.codes / size)
        self.started.fill_(True)

    @torch.no_grad()
    def update(self, points: Float[Tensor, "N D"], ids: Int[Tensor, "N"], rng: torch.Generator) -> None:
        """Running means of the points of each code (van den Oord et al. 2017, appendix A.1), over all ranks.

        Dead codes restart at points drawn in proportion to their squared error, where the codebook lacks most.
        """
        size = len(self.codes)
        counts, sums = (_over_ranks(t) for t in tally(points, ids, size))
        total = counts.sum()
        self.usage.lerp_(counts / total, 1 - DECAY)
        self.means.lerp_(sums / total, 1 - DECAY)
        error = (points - self.codes[ids]).square().sum(1)
        fresh = _from_first(points[_draw(error, size, rng).to(points.device)])
        dead = self.usage < DEAD / size
        self.usage.masked_fill_(dead, 0.5 / size)
        self.means.copy_(torch.where(dead[:, None], fresh * (0.5 / size), self.means))
        self.codes.copy_(self.means / self.usage[:, None])


def _over_ranks(tensor: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def _from_first(tensor: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast(tensor, 0)
    return tensor
