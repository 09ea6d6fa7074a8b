"""The loss `bag_gan`: a term with a critic of its own."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from softdimo.errors import DataError, PluginError
from softdimo.kinds import Batch, Context, Logs, Teacher
from softdimo.math.rollout import Roll
from softdimo.spec import LossSpec, Optimizer, Player


class BagGAN(LossSpec):
    """Non-saturating GAN on the mean soft embedding of a sequence."""

    equation: ClassVar[str] = "E[softplus(-D(mean_l E^T p_theta))]"
    source: ClassVar[str] = "softdimo-symmetry"

    hidden: int = 16
    """Width of D."""
    player: Player = Player(optimizer=Optimizer(lr=1e-3))
    """How D trains."""

    def build(self, context: Context) -> "BagGANTerm":
        """The term with a fresh D."""
        if context.teacher is None:
            raise PluginError("the loss `bag_gan` needs a teacher")
        return BagGANTerm(context.teacher, self.hidden, self.player)


class BagGANTerm:
    """L_bag and its critic D."""

    def __init__(self, teacher: Teacher, hidden: int, player: Player) -> None:
        self.teacher, self.player = teacher, player
        self.critic: nn.Module | None = nn.Sequential(nn.Linear(teacher.width, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def _score(self, e: Tensor) -> Tensor:
        assert self.critic is not None
        scores: Tensor = self.critic(e.mean(1))
        return scores

    def generator(self, roll: Roll) -> tuple[Tensor, Logs]:
        """softplus(-D) of the student's soft embeddings."""
        loss = softplus(-self._score(self.teacher.soften(roll.probs))).mean()
        return loss, {"score": loss.detach()}

    def critic_loss(self, roll: Roll, real: Batch) -> tuple[Tensor, Logs]:
        """softplus(-D(real)) + softplus(D(generated))."""
        if real.tokens is None:
            raise DataError("the loss `bag_gan` needs real tokens")
        with torch.no_grad():
            on_real, on_fake = self.teacher.embed(real.tokens), self.teacher.soften(roll.probs)
        loss = softplus(-self._score(on_real)).mean() + softplus(self._score(on_fake)).mean()
        return loss, {"critic": loss.detach()}
