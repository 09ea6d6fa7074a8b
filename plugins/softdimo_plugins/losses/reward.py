"""The reward term of Soft-Di[M]O: differentiable rewards on the soft decode (arXiv 2509.22925)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from softdimo.errors import PluginError
from softdimo.kinds import Batch, Context, Logs, Reward, rated
from softdimo.math.rollout import Roll
from softdimo.spec import LossSpec, Settings, Spec, component


class Weighted(Settings):
    """One reward with its lambda."""

    reward: Annotated[Spec, component("reward")]
    """The reward component."""
    weight: float = 1.0
    """lambda_i."""
    cap: float | None = None
    """Stop pushing a sample whose reward is above this; guards against over-optimization."""
    name: str = ""
    """Name in the log; the component's name when empty."""


class RewardLoss(LossSpec):
    """-sum_i lambda_i E[R_i(Dec(E_dec^T p_theta), c)]; `held_out` rewards are only watched."""

    equation: ClassVar[str] = "-sum_i lambda_i E[R_i(Dec(E_dec^T p_theta), c)]"
    source: ClassVar[str] = "Soft-Di[M]O (arXiv 2509.22925), reward fine-tuning"
    real: ClassVar[bool] = False

    rewards: tuple[Weighted, ...]
    """Optimized rewards; each must be differentiable."""
    held_out: tuple[Weighted, ...] = ()
    """Rewards that are logged, never optimized: when they part from the optimized ones, the reward is being hacked."""

    def build(self, context: Context) -> RewardTerm:
        """The term with its rewards built."""
        if context.tokenizer is None:
            raise PluginError("the loss `reward` needs a `tokenizer:` section in the recipe")
        if not self.rewards:
            raise PluginError("the loss `reward` needs at least one entry in `rewards`")
        optimized = [(r, context.make(r.reward)) for r in self.rewards]
        for entry, built in optimized:
            if not built.differentiable:
                raise PluginError(
                    f"the reward `{entry.reward.use}` is not differentiable, so it cannot be a training loss; "
                    "watch it under `held_out`, or use it in `search` with best_of_n"
                )
        return RewardTerm(optimized, [(r, context.make(r.reward)) for r in self.held_out])


class RewardTerm:
    """L_reward; owns no critic."""

    critic: nn.Module | None = None
    player = None

    def __init__(self, optimized: list[tuple[Weighted, Reward]], held_out: list[tuple[Weighted, Reward]]) -> None:
        self.optimized, self.held_out = optimized, held_out

    def generator(self, roll: Roll) -> tuple[Tensor, Logs]:
        """Minus the weighted sum of the mean rewards of the soft decode."""
        images = roll.images
        loss = roll.logits.new_zeros(())
        logs: Logs = {}
        for entry, reward in self.optimized:
            score = rated(reward, images, roll.cond)
            logs[entry.name or entry.reward.use] = score.detach().mean()
            if entry.cap is not None:
                score = score.clamp(max=entry.cap)
            loss = loss - entry.weight * score.mean()
        with torch.no_grad():
            for entry, reward in self.held_out:
                logs[f"held_out/{entry.name or entry.reward.use}"] = rated(reward, images, roll.cond).mean()
        return loss, logs

    def critic_loss(self, roll: Roll, real: Batch) -> tuple[Tensor, Logs]:
        """Never called: rewards are frozen."""
        raise NotImplementedError("the reward term owns no critic")
