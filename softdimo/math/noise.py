"""Random numbers of the exponential race and of Gumbel tricks."""

from __future__ import annotations

import torch
from torch import Tensor


def exponential(like: Tensor, rng: torch.Generator) -> Tensor:
    """Standard exponentials -log(1 - u) with the shape, precision and device of `like`, drawn on the generator's.

    `Tensor.exponential_` works number by number on a CPU. There, u in float64 and a vectorized logarithm give the same
    numbers in two fifths of the time.
    """
    if rng.device.type == "cpu":
        return torch.rand(like.shape, dtype=torch.float64, generator=rng).neg_().log1p_().neg_().to(like)
    return torch.empty(like.shape, dtype=like.dtype, device=rng.device).exponential_(generator=rng).to(like.device)


def gumbel(like: Tensor, rng: torch.Generator) -> Tensor:
    """Standard Gumbel noise, -log of a unit exponential: argmax(z + noise) is a sample of softmax(z)."""
    return -exponential(like, rng).clamp_min_(torch.finfo(like.dtype).tiny).log_()
