"""The reward term of Soft-Di[M]O: differentiable rewards on the soft decode (arXiv 2509.22925)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from softdimo.errors import PluginError
from softdimo.kinds import Batch, Context, Logs, Reward, rated
from softdimo.math.ranks import mean_over_ranks
from softdimo.math.rollout import Roll
from softdimo.shapes import PerSample
from softdimo.spec import LossSpec, Settings, Spec, component
from softdimo_plugins.losses.augment import Augment
from softdimo_plugins.losses.parting import Parting, Watch


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

    @property
    def shown(self) -> str:
        """Its name in the log."""
        return self.name or self.reward.use


class RewardLoss(LossSpec):
    """-sum_i lambda_i E[R_i(Dec(E_dec^T p_theta), c)]; `held_out` rewards are only watched."""

    equation: ClassVar[str] = "-sum_i lambda_i E[R_i(Dec(E_dec^T p_theta), c)]"
    source: ClassVar[str] = "Soft-Di[M]O (arXiv 2509.22925), reward fine-tuning"
    real: ClassVar[bool] = False

    rewards: tuple[Weighted, ...]
    """Optimized rewards; each must be differentiable."""
    held_out: tuple[Weighted, ...] = ()
    """Rewards that are logged, never optimized: when they part from the optimized ones, the reward is being hacked."""
    augment: Augment | None = None
    """Random views that optimized rewards see in place of the images; held-out rewards see the images. The log then
    shows the rewards of the views."""
    stop_when_parted: Parting | None = None
    """End the training when a held-out reward falls while the optimized ones rise; null never does. What is trained by
    then is saved and measured as if `iterations` had been reached."""

    def objective(self) -> tuple[str, str]:
        """With A for the views, where there are any."""
        if self.augment is None:
            return self.equation, self.source
        return self.equation.replace("Dec(E_dec^T p_theta)", "A(Dec(E_dec^T p_theta))"), self.source

    def build(self, context: Context) -> RewardTerm:
        """The term with its rewards built."""
        if context.tokenizer is None:
            raise PluginError("the loss `reward` needs a `tokenizer:` section in the recipe")
        if not self.rewards:
            raise PluginError("the loss `reward` needs at least one entry in `rewards`")
        for entries in (self.rewards, self.held_out):
            names = [entry.shown for entry in entries]
            if twice := [name for i, name in enumerate(names) if name in names[:i]]:
                raise PluginError(f"two rewards are called `{twice[0]}` in the log; give one a `name:` of its own")
        optimized = [(r, context.make(r.reward)) for r in self.rewards]
        for entry, built in optimized:
            if not built.differentiable:
                raise PluginError(
                    f"the reward `{entry.reward.use}` is not differentiable, so it cannot be a training loss; "
                    "watch it under `held_out`, or use it in `search` with best_of_n"
                )
        if self.stop_when_parted is not None and not self.held_out:
            raise PluginError("stop_when_parted: compares with held-out rewards: add entries to `held_out`")
        held_out = [(r, context.make(r.reward)) for r in self.held_out]
        return RewardTerm(optimized, held_out, self.augment, self.stop_when_parted)


class RewardTerm:
    """L_reward; owns no critic."""

    critic: nn.Module | None = None
    player = None

    def __init__(
        self,
        optimized: list[tuple[Weighted, Reward]],
        held_out: list[tuple[Weighted, Reward]],
        augment: Augment | None = None,
        parting: Parting | None = None,
    ) -> None:
        self.optimized, self.held_out, self.augment = optimized, held_out, augment
        self.watch = None if parting is None else Watch(parting)

    def generator(self, roll: Roll) -> tuple[Tensor, Logs]:
        """Minus the weighted sum of the mean rewards of the soft decode, or of its views."""
        loss = roll.logits.new_zeros(())
        logs: Logs = {}
        for (entry, _), score in zip(self.optimized, self._scores(roll), strict=True):
            logs[entry.shown] = score.detach().mean()
            capped = score if entry.cap is None else score.clamp(max=entry.cap)
            loss = loss - entry.weight * capped.mean()
        held_out: dict[str, Tensor] = {}
        with torch.no_grad():
            for entry, reward in self.held_out:
                held_out[entry.shown] = rated(reward, roll.images, roll.cond).mean()
        if self.watch is not None:
            seen = torch.stack([-loss.detach(), *(v.to(loss) for v in held_out.values())])
            optimized, *others = mean_over_ranks(seen).tolist()
            self.watch.add(optimized, dict(zip(held_out, others, strict=True)))
        return loss, logs | {f"held_out/{name}": value for name, value in held_out.items()}

    def _scores(self, roll: Roll) -> list[PerSample]:
        """Of every optimized reward [B]; each view is drawn once and shown to all of them."""
        if self.augment is None:
            return [rated(reward, roll.images, roll.cond) for _, reward in self.optimized]
        views = [self.augment.view(roll.images, roll.rng) for _ in range(self.augment.views)]
        return [torch.stack([rated(reward, view, roll.cond) for view in views]).mean(0) for _, reward in self.optimized]

    @property
    def ending(self) -> str:
        """Why training shall end; empty while it goes on."""
        return "" if self.watch is None else self.watch.ending

    def seen(self) -> dict[str, Any]:
        """What the rewards have been so far."""
        return {} if self.watch is None else self.watch.state_dict()

    def see(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        if self.watch is not None:
            self.watch.load_state_dict(state)

    def critic_loss(self, roll: Roll, real: Batch) -> tuple[Tensor, Logs]:
        """Never called: rewards are frozen."""
        raise NotImplementedError("the reward term owns no critic")
