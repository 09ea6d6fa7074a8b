"""Token initialization of the one-step student: x_init is part mask, part random tokens; its embedding gets noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from softdimo.math.masking import apply_mask, exact_count_mask
from softdimo.shapes import Embedding, Tokens
from softdimo.spec import Fraction, Settings

if TYPE_CHECKING:
    from softdimo.kinds import TokenShape


class Init(Settings):
    """Hybrid initialization of Di[M]O: a fraction of mask tokens, random tokens elsewhere, Gaussian embedding noise."""

    r_init: Fraction = 0.6
    """Fraction of mask tokens (exact count, at least one). Paper: 0.6 for MaskGIT, 0.5 for Meissonic."""
    sigma: Fraction = 0.1
    """Strength of the embedding noise in [0, 1]. Paper: 0.1 for MaskGIT, 0.3 for Meissonic."""
    noise_rms: Literal["table", "unit"] = "table"
    """Unit of the noise: the root mean square of the teacher's embedding table, or 1 as in the public code."""

    def tokens(self, n: int, shape: TokenShape, rng: torch.Generator, device: torch.device | str) -> Tokens:
        """x_init [n L G]: max(1, round(r_init L G)) mask ids V per sample, uniform tokens in [0, V) elsewhere."""
        drawn = torch.randint(shape.V, (n, shape.L, shape.G), generator=rng, device=rng.device)
        mask = exact_count_mask(torch.full((n,), self.r_init, device=rng.device), shape, rng)
        return apply_mask(drawn, mask, shape.V).to(device)

    def perturb(self, e: Embedding, rms: float | Float[Tensor, ""], rng: torch.Generator) -> Embedding:
        """sqrt(1 - sigma^2) e + sigma rms eps, eps ~ N(0, I): keeps the variance of embeddings whose RMS is `rms`.

        `rms` is `teacher.table_rms()`; 1 takes its place when `noise_rms` is `unit`. Every token gets noise, masks too.
        """
        if self.sigma == 0:
            return e
        eps = torch.randn(e.shape, generator=rng, device=rng.device, dtype=e.dtype).to(e.device)
        return math.sqrt(1 - self.sigma**2) * e + (self.sigma * (rms if self.noise_rms == "table" else 1.0)) * eps
