"""Means over what all ranks of a distributed run hold. Their gradients are averaged, each rank weighing the same."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of `x` over the ranks, without gradient; all ranks enter. `x` itself where there is one process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    total = x.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def share(count: int, like: Tensor) -> Tensor | float:
    """What a mean over this rank's `count` items weighs, so that the ranks' mean is that of all items: 1 on average.

    All ranks enter. `like` tells the device.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1.0
    mine = torch.tensor(float(count), device=like.device)
    return mine / mean_over_ranks(mine)
