"""The masked diffusion objective: cross-entropy at masked units, for teachers on data and psi on student samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from softdimo.math.masking import apply_mask, exact_count_mask
from softdimo.math.precision import wide
from softdimo.math.ranks import share
from softdimo.math.schedules import Schedule, sample_ratio

if TYPE_CHECKING:
    from softdimo.kinds import Cond, Teacher
    from softdimo.shapes import Mask, Tokens, UnitLogits


def remask(
    tokens: Tokens, net: Teacher, schedule: Schedule, rng: torch.Generator, within: tuple[float, float] = (0.0, 1.0)
) -> tuple[Mask, Tokens]:
    """Forward process: a mask with t ~ U[0, 1], ratio from the schedule, exact count; and the masked tokens x_t.

    Ratios outside `within` become its nearer end.
    """
    ratio = sample_ratio(schedule, len(tokens), rng, tokens.device).clamp(*within)
    mask = exact_count_mask(ratio, net.shape, rng)
    return mask, apply_mask(tokens, mask, net.shape.V)


def mdm_loss(
    net: Teacher, x_t: Tokens, tokens: Tokens, mask: Mask, cond: Cond, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """-E log p(x_0 | x_t) at masked units, mean over the batch's N masked units; also returns the logits [N V]."""
    logits = wide(net(net.embed(x_t), cond, at=mask).logits)
    return unit_cross_entropy(logits, tokens[mask], label_smoothing), logits


def unit_cross_entropy(logits: UnitLogits, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of N masked units [N V] to their classes [N]; every unit of all ranks weighs the same."""
    return cross_entropy(logits, target, label_smoothing=label_smoothing) * share(len(logits), logits)
