"""From student logits to something differentiable that embeddings and decoders accept in place of tokens.

| kind                     | forward                      | backward                    |
|--------------------------|------------------------------|-----------------------------|
| soft (Soft-Di[M]O)       | softmax(z / tau)             | of the same                 |
| straight_through         | one-hot of the sampled token | of softmax(z / tau)         |
| gumbel                   | softmax((z + g) / tau)       | of the same, g held fixed   |
| gumbel_straight_through  | one-hot of argmax(z + g)     | of softmax((z + g) / tau)   |

g is standard Gumbel noise, so argmax(z + g) is a sample of softmax(z), drawn anew and independent of the roll's tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from softdimo.math.noise import gumbel
from softdimo.math.precision import wide
from softdimo.shapes import Logits, Probs, Tokens
from softdimo.spec import Positive, Settings


class Relaxation(Settings):
    """How the student's tokens become probabilities that a gradient can pass through."""

    kind: Literal["soft", "straight_through", "gumbel", "gumbel_straight_through"] = "soft"
    """`soft` is the expected embedding of Soft-Di[M]O: deterministic, no noise in the gradient."""
    temperature: Positive = 1.0
    """tau: below 1 the mixture concentrates on the most probable token."""

    def __call__(self, logits: Logits, tokens: Tokens, rng: torch.Generator) -> Probs:
        """Relaxed tokens [B L G V], each row summing to 1; float32, or float64 for float64 logits.

        `tokens` in [0, V) is the hard sample that `straight_through` shows in its forward pass.
        """
        z = wide(logits)
        if self.kind.startswith("gumbel"):
            z = z + gumbel(z, rng)
        probs = (z / self.temperature).softmax(-1)
        if self.kind == "straight_through":
            return _straight_through(tokens, probs)
        if self.kind == "gumbel_straight_through":
            return _straight_through(z.argmax(-1), probs)
        return probs


def _straight_through(tokens: Tensor, probs: Tensor) -> Tensor:
    """One-hot tokens (exactly) with the gradient of `probs`."""
    hard = functional.one_hot(tokens, probs.shape[-1]).to(probs.dtype)
    return hard + (probs - probs.detach())
