"""Top-k and nucleus truncation of logits."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def truncate(
    logits: Float[Tensor, "*units V"], top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "*units V"]:
    """Logits of dropped classes become -inf; top-k first, then the smallest set with probability >= top_p.

    Exactly min(k, V) classes stay under top-k, ties or not. The most probable class always stays.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        values, index = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, index, values)
    if top_p is not None and top_p < 1:
        values, index = logits.sort(dim=-1, descending=True)
        probs = values.softmax(-1)
        before = probs.cumsum(-1) - probs
        logits = torch.full_like(logits, -torch.inf).scatter(-1, index, values.masked_fill(before >= top_p, -torch.inf))
    return logits
