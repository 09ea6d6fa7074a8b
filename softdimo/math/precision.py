"""In which precision logits and scores are worked with."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """float32 for lower precisions; float32 and float64 stay as they are."""
    return x if x.dtype == torch.float64 else x.float()
