"""Expected rows of large tables: for 4096 tokens of 8192 codes the probabilities of one image take 128 MiB."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from softdimo_plugins.layers import full_precision

ROWS = 1024
"""Units that are mixed at a time."""


def expected(
    table: Float[Tensor, "V D"], probs: Float[Tensor, "*units V"], top_k: int | None = None
) -> Float[Tensor, "*units D"]:
    """sum_v p_v E_v in the table's precision, whatever autocast does, and so are the gradients.

    With `top_k` of the k most probable v only, in proportion. Beside `probs` and its gradient nothing of their size is
    ever made: units are mixed a few at a time, and anew in the backward pass. Differentiable once.
    """
    out: Tensor = _Expected.apply(table, probs.reshape(-1, probs.shape[-1]), top_k)
    return out.view(*probs.shape[:-1], table.shape[1])


class _Expected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, probs: Tensor, top_k: int | None) -> Tensor:
        ctx.save_for_backward(table, probs)
        ctx.top_k = top_k
        with full_precision(probs.device):
            return torch.cat([_mixed(table, p, top_k) for p in torch.split(probs, ROWS)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        asked = ctx.needs_input_grad[:2]
        table, probs = (t.detach().requires_grad_(needed) for t, needed in zip(ctx.saved_tensors, asked, strict=True))
        of_table, of_probs = (torch.zeros_like(t) if t.requires_grad else None for t in (table, probs))
        with torch.enable_grad(), full_precision(g.device):
            for first in range(0, len(probs), ROWS):
                rows = slice(first, first + ROWS)
                p = probs.detach()[rows].requires_grad_(probs.requires_grad)
                leaves = [leaf for leaf in (table, p) if leaf.requires_grad]
                found = iter(torch.autograd.grad(_mixed(table, p, ctx.top_k), leaves, g[rows]))
                if of_table is not None:
                    of_table += next(found)
                if of_probs is not None:
                    of_probs[rows] = next(found)
        return of_table, of_probs, None


def _mixed(table: Float[Tensor, "V D"], p: Float[Tensor, "n V"], top_k: int | None) -> Float[Tensor, "n D"]:
    """Plainly."""
    if top_k is not None and top_k < len(table):
        most, ids = p.topk(top_k, -1)
        p = torch.zeros_like(p).scatter(-1, ids, most / most.sum(-1, keepdim=True))
    return p.to(table.dtype) @ table
