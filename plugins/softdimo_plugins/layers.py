"""Small helps that several networks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

SHORT, SHORT_BF16 = 256, 1024
"""On a CPU, sequences up to this length are faster with attention written out; in bf16 longer ones too."""


def full_precision(device: torch.device) -> torch.autocast:
    """Context in which autocast is off on `device` (any device, also meta), for sums that must not be rounded."""
    return torch.autocast(device.type if torch.amp.is_autocast_available(device.type) else "cpu", enabled=False)


def attend(
    q: Float[Tensor, "B H L d"], k: Float[Tensor, "B H L d"], v: Float[Tensor, "B H L d"], dropout: float = 0.0
) -> Float[Tensor, "B H L d"]:
    """softmax(q k^T / sqrt(d)) v: a fused kernel, or on a CPU and for short sequences written out, which is faster.

    `dropout` is the probability of dropping a weight of the softmax.
    """
    short = SHORT_BF16 if q.dtype == torch.bfloat16 else SHORT
    if q.device.type == "cpu" and q.shape[2] <= short and not dropout:
        one, two, three = (x.flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v))  # products of whole matrices
        mixed: Tensor = (one @ two.mT).softmax(-1) @ three
        return mixed.view(q.shape)
    return scaled_dot_product_attention(q, k, v, dropout_p=dropout)


class SelfAttention(nn.Module):
    """Multi-head attention of every position to every position: [B L D] -> [B L D]."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Queries, keys and values lie one after another in the projection."""
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, self.dropout if self.training else 0.0)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class ChannelsLast(nn.Module):
    """The same [B C H W] with the channels' memory side by side, which convolutions then keep: up to 1.5 times faster.

    After the first convolution it serves images of one channel too, whose own layout is ambiguous; weights keep theirs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Change the layout only."""
        return x.contiguous(memory_format=torch.channels_last)


def run_blocks(
    blocks: Iterable[Callable[..., Tensor]], x: Tensor, features: Sequence[int], headless: bool, *args: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x through `block(x, *args)` of each block, and the outputs of the blocks `features`, in their order.

    `headless` stops after the last feature. ValueError for a feature that is no block.
    """
    blocks = tuple(blocks)
    if any(not 0 <= i < len(blocks) for i in features):
        raise ValueError(f"features {tuple(features)}: this network has blocks 0 to {len(blocks) - 1}")
    seen: dict[int, Tensor] = {}
    for i in range(max(features, default=-1) + 1 if headless else len(blocks)):
        x = blocks[i](x, *args)
        if i in features:
            seen[i] = x
    return x, tuple(seen[i] for i in features)


def soft_rows(
    table: Float[Tensor, "rows D"], probs: Float[Tensor, "*units V"], mask: Bool[Tensor, "*units"] | None, masked: int
) -> Float[Tensor, "*units D"]:
    """E^T p over the first V rows of a table, in the table's precision; the row `masked` where masked."""
    V = probs.shape[-1]
    with full_precision(probs.device):
        probs = probs.to(table.dtype)
        if mask is None:
            return probs @ table[:V]
        e = probs.masked_fill(mask[..., None], 0) @ table[:V]
        return e + mask[..., None].to(e.dtype) * table[masked]
