"""Groups of bits as classes: class v of a group has the bits (v >> k) & 1, bit 0 first, and stands for their signs."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from softdimo_plugins.layers import full_precision


def signs(bits: int) -> Float[Tensor, "V bits"]:
    """-1 and 1 of every class of a group of so many bits, V = 2^bits."""
    return 2.0 * (torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1) - 1.0


def classes(bits: Bool[Tensor, "*units bits"]) -> Int[Tensor, "*units"]:
    """The class that has these bits."""
    return (bits * 2 ** torch.arange(bits.shape[-1], device=bits.device)).sum(-1)


def expected(
    codes: Float[Tensor, "V bits"], probs: Float[Tensor, "B L G V"], mask: Bool[Tensor, "B L G"] | None = None
) -> Float[Tensor, "B L G*bits"]:
    """sum_v p_v codes_v in the codes' precision, the groups of a position one after another; 0 where masked."""
    with full_precision(probs.device):
        beta = probs.to(codes.dtype) @ codes
    if mask is not None:
        beta = beta.masked_fill(mask[..., None], 0)
    return beta.flatten(2)
