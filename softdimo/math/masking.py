"""Re-masking with an exact count: x~_t ~ q_{t|0}(. | x_theta), the mask ratio fixing the number of masked units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from softdimo.shapes import Mask, PerSample, Tokens

if TYPE_CHECKING:
    from softdimo.kinds import TokenShape


def exact_count_mask(ratio: PerSample, shape: TokenShape, rng: torch.Generator) -> Mask:
    """Mask of [B L G] with exactly max(1, round(ratio L G)) True units per sample, at uniformly random places.

    `ratio` is a fraction in [0, 1]. The count is computed in float32, halves to even, as in the public Di[M]O code.
    Groups are masked independently of each other (MaskBit). The random order is drawn on the generator's device.
    """
    count = (ratio.float() * shape.units).round().clamp(1, shape.units)
    scores = torch.rand(len(ratio), shape.units, generator=rng, device=rng.device).to(ratio.device)
    permutation = scores.argsort(dim=1)
    return (permutation < count[:, None]).view(len(ratio), shape.L, shape.G)


def apply_mask(tokens: Tokens, mask: Mask, mask_id: int) -> Tokens:
    """Tokens with `mask_id` (V) wherever the mask is True."""
    return tokens.masked_fill(mask, mask_id)
