"""Norm priors for test-time search: how likely the length of an embedding is, as a regularizer.

ReNO (arXiv 2406.04312) optimizes Gaussian noise in R^n and adds the log density of its norm, which is chi-distributed:
log p(r) = (n - 1) log r - r^2 / 2 up to a constant, with its top at r = sqrt(n - 1). A one-step generator of tokens
starts from embeddings of discrete tokens with a little noise, so what the norm is *of* has to be chosen:

- `start`: each token's own, about the length that it had at the start. The log density of chi is
  -(r - sqrt(n - 1))^2 to second order about its top, whatever n; here the top is moved to the token's first length.
  The only one of the three that asks nothing of the table: rows (the mask's among them) may have any lengths.
- `table`: each token's, as chi with D degrees of freedom in units of the table's root mean square. That is ReNO's
  prior where the table is like Gaussian noise (MaskGIT's was drawn so); rows of other lengths are pulled away.
- `noise`: that of the embedding noise, which truly is Gaussian: e = sqrt(1 - sigma^2) E[x_init] + sigma rms eps with
  n = L D numbers eps. A search moves e by d, which is at right angles to eps in the mean, so
  |eps|^2 = n + |d|^2 / (sigma rms)^2 and, with q = |d|^2 / (n sigma^2 rms^2),
  log p = (n - 1) / 2 log(1 + q) - n q / 2 relative to the start: it bounds how far e goes from its own tokens, and
  strictly, since sigma is small (0.1): one step of 0.1 rms is as large as all the noise.

All are in nats per token, so that a weight means the same for each.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from softdimo.shapes import Embedding, PerSample

Of = Literal["start", "table", "noise"]


def log_norm(e: Embedding, start: Embedding, unit: float, of: Of = "start", noise: float = 1.0) -> PerSample:
    """Log density [B] of the norms of embeddings [B L D], in nats per token, up to a constant.

    `unit` is the table's root mean square, `noise` the standard deviation sigma rms of the embedding noise.
    """
    if of == "start":
        stretch: Tensor = (e.norm(dim=-1) - start.norm(dim=-1)) / unit
        return -stretch.square().mean(1)
    if of == "table":
        r: Tensor = (e.norm(dim=-1) / unit).clamp_min(1e-6)
        return ((e.shape[-1] - 1) * r.log() - r.square() / 2).mean(1)
    n = e[0].numel()
    q = (e - start).square().flatten(1).sum(1) / (n * noise**2)
    return ((n - 1) / 2 * torch.log1p(q) - n * q / 2) / e.shape[1]
