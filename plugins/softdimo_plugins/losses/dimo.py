"""Di[M]O: token-level distribution matching on re-masked student samples (arXiv 2503.15457, equations 4-8)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import AfterValidator, model_validator
from torch import Tensor, nn

from softdimo.errors import PluginError
from softdimo.kinds import Batch, Cond, Context, Logs, Teacher
from softdimo.math.divergence import Divergence, softmax_gradient, surrogate
from softdimo.math.guidance import Guidance, guided_logits
from softdimo.math.mdm import mdm_loss, remask, unit_cross_entropy
from softdimo.math.precision import wide
from softdimo.math.ranks import share
from softdimo.math.rollout import Roll
from softdimo.math.schedules import Schedule, progress_at
from softdimo.shapes import Mask, PerSample, Tokens, UnitLogits
from softdimo.spec import Fraction, LossSpec, Player
from softdimo_plugins.lora import Lora, LoraTeacher


def ordered(ends: tuple[float, float]) -> tuple[float, float]:
    """The two ends of a range, the lower one first; ValueError otherwise."""
    if ends[0] > ends[1]:
        raise ValueError(f"the range starts at {ends[0]:g} and ends at {ends[1]:g}; write the lower end first")
    return ends


class DiMO(LossSpec):
    """Match p_psi to p_phi at the masked units of re-masked student samples; psi is an MDM of the student's samples."""

    equation: ClassVar[str] = "E_t E_{x_t ~ q(x_t | x_theta)} sum_{masked i} D(p_phi^i || p_psi^i)(x_t)"
    source: ClassVar[str] = "Di[M]O (arXiv 2503.15457), equations 4-8"
    real: ClassVar[bool] = False

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
    ratios: Annotated[tuple[Fraction, Fraction], AfterValidator(ordered)] = (0.0, 1.0)
    """Mask ratios of x_t are kept within (Meissonic's code: 0.02 and 0.98). Equal ends: one ratio, for ablations."""
    auxiliary: Literal["copy", "none"] | Lora = "copy"
    """psi: a trainable copy of the teacher; `{use: lora, rank: 32}`: the teacher's own weights, frozen, with trainable
    adapters; or `none`: the student itself at x_t, without gradient (an ablation)."""
    label_smoothing: Fraction = 0.0
    """Label smoothing of psi's cross-entropy (the public code: 0.1, as its teacher was trained)."""
    share_t: bool = False
    """One re-masked sequence for both updates: 8 network passes instead of 9."""
    fresh_samples: bool = False
    """Train psi on samples that the student draws after its step, from new x_init and new labels (the public code), not
    on the x_theta that g was computed for (the paper): 10 passes instead of 9. Labels are uniform over the data's
    classes; with prompts the conditions of the batch stay."""
    dropout: bool = False
    """Dropout acts in the teacher and in psi where g is computed, as in the public MaskGIT code, whose networks never
    leave training mode. In psi it always acts while psi trains (but not with `share_t`); for the student's see
    `train.dropout`."""
    player: Player | None = Player()
    """How psi trains; null when there is none."""

    @model_validator(mode="before")
    @classmethod
    def _no_player_without_psi(cls, value: Any) -> Any:
        return value | {"player": None} if isinstance(value, dict) and value.get("auxiliary") == "none" else value

    @model_validator(mode="after")
    def _of_psi(self) -> Self:
        for name in ("share_t", "fresh_samples", "label_smoothing"):
            if self.auxiliary == "none" and getattr(self, name):
                raise ValueError(f"{name} is about training psi, and with auxiliary: none there is no psi; remove it")
        if self.share_t and self.fresh_samples:
            raise ValueError("share_t trains psi on the samples of g, fresh_samples on others: choose one")
        if self.auxiliary != "none" and self.player is None:
            raise ValueError("psi trains, so it needs a player; give its settings, or auxiliary: none")
        return self

    def passes(self) -> dict[str, float]:
        """Teacher (twice when guided), psi queried for g, psi trained; `share_t` queries and trains in one pass."""
        scales = {self.guidance.scale} | ({self.guidance.start} if self.guidance.ramp != "constant" else set())
        teacher = {"teacher at x_t": 1.0 if scales == {1.0} else 2.0}
        if self.player is None:
            return teacher | {"student at x_t": 1.0}
        trained = 2.0 if isinstance(self.auxiliary, Lora) else 3.0  # the adapters' own passes are next to nothing
        if self.share_t:
            return teacher | {"auxiliary, queried and trained": trained}
        fresh = {"student, once more for psi": 1.0 / self.player.every} if self.fresh_samples else {}
        return teacher | {"auxiliary, queried": 1.0, "auxiliary, trained": trained / self.player.every} | fresh

    def build(self, context: Context) -> DiMOTerm:
        """The term, with its psi."""
        if context.teacher is None:
            raise PluginError("the loss `dimo` needs a teacher: add a `teacher:` section to the recipe")
        if isinstance(self.auxiliary, Lora):
            psi: Teacher | None = LoraTeacher(context.teacher, self.auxiliary)
        else:
            psi = None if self.auxiliary == "none" else context.copy_teacher()
        return DiMOTerm(self, context.teacher, psi, context.schedule, len(context.classes))


class DiMOTerm:
    """L_DiMO and the auxiliary model psi that it owns; None where the student stands in for it."""

    def __init__(
        self, spec: DiMO, teacher: Teacher, auxiliary: nn.Module | None, schedule: Schedule, classes: int = 1
    ) -> None:
        self.spec, self.teacher, self.player, self.classes = spec, teacher, spec.player, classes
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
        mask, x_t = remask(roll.tokens, self.teacher, self.schedule, roll.rng, spec.ratios)
        with torch.set_grad_enabled(spec.share_t):
            aux = self._query(roll, x_t, mask)
        if spec.share_t:
            roll.shared[spec.name] = (aux, roll.tokens[mask])
        z = roll.logits[mask]
        with torch.no_grad():
            p = aux.detach()
            teacher = self.teacher.train(spec.dropout)
            q = guided_logits(teacher, teacher.embed(x_t), roll.cond, self._scale(mask), at=mask)
            teacher.eval()
            g = spec.divergence.gradient(p, q) if spec.jacobian == "auxiliary" else softmax_gradient(z, p, q)
            counts = mask.sum((1, 2))
            value = spec.divergence.value(p, q)
        loss = surrogate(z, g, len(mask), spec.normalization, counts)
        weight = share(len(p), p)  # ranks differ in their numbers of masked units
        return loss, {
            "divergence": value.mean() * weight,
            "student_entropy": entropy(z.detach()).mean() * weight,
            "auxiliary_entropy": entropy(p).mean() * weight,
            "teacher_entropy": entropy(q).mean() * weight,
        }

    def _query(self, roll: Roll, x_t: Tokens, mask: Mask) -> UnitLogits:
        """psi's logits at the masked units of x_t [N V]; the student's own where there is no psi."""
        if self.critic is None:
            return roll.student_at(x_t, mask)
        psi = self.auxiliary.train(self.spec.dropout)
        return wide(psi(psi.embed(x_t), roll.cond, at=mask).logits)

    def _scale(self, mask: Mask) -> float | PerSample:
        """Guidance scale s, of each sample's mask ratio when it is ramped."""
        if self.spec.guidance.ramp == "constant":
            return self.spec.guidance.scale
        return self.spec.guidance.at(progress_at(self.schedule, mask.float().mean((1, 2))))

    def critic_loss(self, roll: Roll, real: Batch) -> tuple[Tensor, Logs]:
        """Masked cross-entropy of psi on the student's samples (the MDM loss)."""
        if self.spec.name in roll.shared:  # psi stays in the mode in which its pass was made
            logits, target = roll.shared.pop(self.spec.name)
            loss = unit_cross_entropy(logits, target, self.spec.label_smoothing)
        else:
            if self.spec.fresh_samples:
                assert roll.again is not None
                roll = roll.again(self._new_labels(roll))
            mask, x_t = remask(roll.tokens, self.teacher, self.schedule, roll.rng, self.spec.ratios)
            psi = self.auxiliary.train()
            loss, _ = mdm_loss(psi, x_t, roll.tokens, mask, roll.cond, self.spec.label_smoothing)
        return loss, {"auxiliary_ce": loss.detach()}

    def _new_labels(self, roll: Roll) -> Cond:
        """As many uniform labels; the same conditions where they are prompts or encodings."""
        if roll.cond.prompts or roll.cond.tensors:
            return roll.cond
        labels = torch.randint(self.classes, (len(roll.cond),), generator=roll.rng, device=roll.rng.device)
        return Cond(labels.to(roll.cond.labels.device))


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row of logits [N V] -> [N]."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)
