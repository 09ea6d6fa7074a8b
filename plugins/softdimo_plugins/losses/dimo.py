"""Di[M]O: token-level distribution matching on re-masked student samples (arXiv 2503.15457, equations 4-8)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from softdimo.errors import PluginError
from softdimo.kinds import Batch, Context, Logs, Teacher
from softdimo.math.divergence import Divergence, softmax_gradient, surrogate
from softdimo.math.guidance import Guidance, guided_logits
from softdimo.math.mdm import mdm_loss, remask
from softdimo.math.precision import wide
from softdimo.math.rollout import Roll
from softdimo.math.schedules import Schedule, progress_at
from softdimo.shapes import Mask, PerSample
from softdimo.spec import Fraction, LossSpec, Player


class DiMO(LossSpec):
    """Match p_psi to p_phi at the masked units of re-masked student samples; psi is an MDM of the student's samples."""

    equation: ClassVar[str] = "E_t E_{x_t ~ q(x_t | x_theta)} sum_{masked i} D(p_phi^i || p_psi^i)(x_t)"
    source: ClassVar[str] = "Di[M]O (arXiv 2503.15457), equations 4-8"

    divergence: Divergence = Divergence()
    """D, and its closed-form gradient g at the auxiliary's logits."""
    jacobian: Literal["auxiliary", "student"] = "auxiliary"
    """`auxiliary`: g with respect to psi's logits at x_t (Di[M]O). `student`: through the student's softmax (D-MMD)."""
    normalization: Literal["sum", "mean_masked"] = "sum"
    """Sum over masked units (the public code) or mean over them, L_M (the paper); both divide by the batch."""
    guidance: Guidance = Guidance(scale=2.0)
    """Guidance of the teacher, z_u + s (z_c - z_u); with a ramp, s follows the mask ratio's progress."""
    schedule: Schedule | None = None
    """Mask schedule of t; the teacher's when null."""
    label_smoothing: Fraction = 0.0
    """Label smoothing of psi's cross-entropy (the public code: 0.1, as its teacher was trained)."""
    share_t: bool = False
    """One re-masked sequence for both updates: 8 network passes instead of 9."""
    player: Player = Player()
    """How psi trains."""

    def passes(self) -> dict[str, float]:
        """Teacher (twice when guided), psi queried for g, psi trained; `share_t` queries and trains in one pass."""
        scales = {self.guidance.scale} | ({self.guidance.start} if self.guidance.ramp != "constant" else set())
        teacher = {"teacher at x_t": 1.0 if scales == {1.0} else 2.0}
        if self.share_t:
            return teacher | {"auxiliary, queried and trained": 3.0}
        return teacher | {"auxiliary, queried": 1.0, "auxiliary, trained": 3.0 / self.player.every}

    def build(self, context: Context) -> DiMOTerm:
        """The term, with psi a trainable copy of the teacher."""
        if context.teacher is None:
            raise PluginError("the loss `dimo` needs a teacher: add a `teacher:` section to the recipe")
        return DiMOTerm(self, context.teacher, context.copy_teacher(), context.schedule)


class DiMOTerm:
    """L_DiMO and the auxiliary model psi that it owns."""

    def __init__(self, spec: DiMO, teacher: Teacher, auxiliary: nn.Module, schedule: Schedule) -> None:
        self.spec, self.teacher, self.player = spec, teacher, spec.player
        self.schedule: Schedule = spec.schedule or schedule
        self.shares_forward = spec.share_t
        self.critic: nn.Module | None = auxiliary

    @property
    def auxiliary(self) -> Teacher:
        """psi (perhaps wrapped by the strategy that trains it)."""
        assert self.critic is not None
        return self.critic  # type: ignore[return-value]

    def generator(self, roll: Roll) -> tuple[Tensor, Logs]:
        """<z_theta(x_init), g(x_t)> at masked units, g = grad D(p_phi || p_psi), so that d loss / d z = g / B."""
        spec = self.spec
        mask, x_t = remask(roll.tokens, self.teacher, self.schedule, roll.rng)
        psi = self.auxiliary.eval()
        with torch.set_grad_enabled(spec.share_t):
            aux = wide(psi(psi.embed(x_t), roll.cond, at=mask).logits)
        if spec.share_t:
            roll.shared[spec.name] = (aux, roll.tokens[mask])
        with torch.no_grad():
            p = aux.detach()
            q = guided_logits(self.teacher, self.teacher.embed(x_t), roll.cond, self._scale(mask), at=mask)
            z = roll.logits[mask].detach()
            g = spec.divergence.gradient(p, q) if spec.jacobian == "auxiliary" else softmax_gradient(z, p, q)
            counts = mask.sum((1, 2))
            value = spec.divergence.value(p, q)
        loss = surrogate(roll.logits[mask], g, len(mask), spec.normalization, counts)
        return loss, {
            "divergence": value.mean(),
            "student_entropy": entropy(z).mean(),
            "auxiliary_entropy": entropy(p).mean(),
            "teacher_entropy": entropy(q).mean(),
        }

    def _scale(self, mask: Mask) -> float | PerSample:
        """Guidance scale s, of each sample's mask ratio when it is ramped."""
        if self.spec.guidance.ramp == "constant":
            return self.spec.guidance.scale
        return self.spec.guidance.at(progress_at(self.schedule, mask.float().mean((1, 2))))

    def critic_loss(self, roll: Roll, real: Batch) -> tuple[Tensor, Logs]:
        """Masked cross-entropy of psi on the student's samples (the MDM loss)."""
        psi = self.auxiliary.train()
        if self.spec.name in roll.shared:
            logits, target = roll.shared.pop(self.spec.name)
            loss = nn.functional.cross_entropy(logits, target, label_smoothing=self.spec.label_smoothing)
        else:
            mask, x_t = remask(roll.tokens, self.teacher, self.schedule, roll.rng)
            loss, _ = mdm_loss(psi, x_t, roll.tokens, mask, roll.cond, self.spec.label_smoothing)
        return loss, {"auxiliary_ce": loss.detach()}


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row of logits [N V] -> [N]."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)
