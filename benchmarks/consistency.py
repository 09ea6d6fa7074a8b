"""How far the consistency assumption of Di[M]O holds: gradients through the student at x_init against those at x_t.

Di[M]O (arXiv 2503.15457, section 3.2) wants sum_i <g^i, d z_theta^i(x_t) / d theta> and takes z_theta(x_init) instead.
Here both are computed for the same batch, the same x_t and the same g, and compared by their cosine over theta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from softdimo.math.divergence import Divergence
from softdimo.math.guidance import Guidance, guided_logits
from softdimo.math.masking import apply_mask, exact_count_mask
from softdimo.math.rollout import rollout
from softdimo.math.schedules import Schedule, progress_at

if TYPE_CHECKING:
    from softdimo.kinds import Cond, Teacher
    from softdimo.math.init import Init


@dataclass(frozen=True)
class Agreement:
    """One mask ratio of x_t."""

    ratio: float
    distance: float
    """RMS distance of the embedded x_t and x_init, in units of the embedding table's RMS."""
    differ: float
    """Fraction of units at which x_t and x_init differ."""
    cosine: float
    """Cosine of the two gradients of theta, summed over the whole batch."""


def agreements(
    student: Teacher, auxiliary: Teacher, teacher: Teacher, cond: Cond, init: Init, guidance: Guidance,
    schedule: Schedule, ratios: tuple[float, ...], rng: torch.Generator, chunk: int = 64,
) -> list[Agreement]:  # fmt: skip
    """Compare at every ratio, with x_theta of the conditions' batch; networks in evaluation mode."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    out = []
    for ratio in ratios:
        at_init, at_t = torch.zeros(()), torch.zeros(())
        distance = differ = 0.0
        for first in range(0, len(cond), chunk):
            part = cond[first : first + chunk]
            roll, z = rollout(student, part, init, rng)
            mask = exact_count_mask(torch.full((len(part),), ratio), student.shape, rng)
            x_t = apply_mask(roll.tokens, mask, student.shape.V)
            e_t = student.embed(x_t)
            with torch.no_grad():
                p = auxiliary(auxiliary.embed(x_t), part, at=mask).logits
                s = guidance.at(progress_at(schedule, mask.float().mean((1, 2))))
                g = Divergence().gradient(p, guided_logits(teacher, teacher.embed(x_t), part, s, at=mask))
                gap = (e_t - student.embed(roll.x_init)).square().mean().sqrt() / student.table_rms()
            at_init = at_init + _flat(torch.autograd.grad((z[mask] * g).sum(), parameters, allow_unused=True))
            there = student(e_t, part, at=mask).logits
            at_t = at_t + _flat(torch.autograd.grad((there * g).sum(), parameters, allow_unused=True))
            distance += float(gap) * len(part) / len(cond)
            differ += float((x_t != roll.x_init).float().mean()) * len(part) / len(cond)
        cosine = float(nn.functional.cosine_similarity(at_init, at_t, dim=0))
        out.append(Agreement(ratio, distance, differ, cosine))
    return out


def _flat(gradients: tuple[Tensor | None, ...]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients if g is not None])
