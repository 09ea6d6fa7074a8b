"""Token initialization of the one-step student: x_init is part mask, part random tokens; its embedding gets noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from softdimo.math.masking import apply_mask, exact_count_mask
from softdimo.shapes import Embedding, Tokens
from softdimo.spec import Fraction, Settings

if TYPE_CHECKING:
    from softdimo.kinds import TokenShape


_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: min(1.0, u),
    "cosine": lambda u: (1 - math.cos(math.pi * min(1.0, u))) / 2,
    "exponential": lambda u: 1 - math.exp(-u),
}


class Warmup(Settings):
    """How the noise grows in training: the part of it that there is at iteration k, with u = k / over."""

    shape: Literal["linear", "cosine", "exponential"] = "linear"
    """min(1, u); (1 - cos(pi min(1, u))) / 2; 1 - exp(-u), which never reaches 1."""
    over: Annotated[int, Field(ge=1)]
    """Iterations until all of it is there; until 63% of it is, if exponential."""

    def at(self, iteration: int) -> float:
        """The part at an iteration, 0 being the first."""
        return _SHAPES[self.shape](iteration / self.over)


class Init(Settings):
    """Hybrid initialization of Di[M]O: a fraction of mask tokens, random tokens elsewhere, Gaussian embedding noise."""

    r_init: Fraction = 0.6
    """Fraction of mask tokens (exact count, at least one). Paper: 0.6 for MaskGIT, 0.5 for Meissonic."""
    sigma: Fraction = 0.1
    """Strength of the embedding noise in [0, 1]. Paper: 0.1 for MaskGIT, 0.3 for Meissonic."""
    noise_rms: Literal["table", "unit"] = "table"
    """Unit of the noise: the root mean square of the teacher's embedding table, or 1 as in the public code."""
    warmup: Warmup | None = None
    """How sigma grows over the iterations of a training; the same all along when null. Samples have all of it."""

    def at(self, iteration: int) -> Init:
        """The initialization at an iteration of a training."""
        if self.warmup is None:
            return self
        return self.model_copy(update={"sigma": self.sigma * self.warmup.at(iteration), "warmup": None})

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
