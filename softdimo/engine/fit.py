"""Training one network on data: a teacher (masked diffusion), a tokenizer, a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from softdimo.engine.ema import EMA
from softdimo.engine.mixed import autocast
from softdimo.engine.player import Player
from softdimo.errors import DataError, TrainingError
from softdimo.kinds import Batch, Cond, Features, Logs, Teacher, Tokenizer
from softdimo.math.mdm import mdm_loss, remask
from softdimo.math.schedules import Schedule

Objective = Callable[[nn.Module, Batch, float], tuple[Tensor, Logs]]
"""(network, batch, progress in [0, 1]) -> scalar loss and logs."""


class Fit:
    """Minimize one objective of one network."""

    def __init__(self, player: Player, ema: EMA, objective: Objective, fabric: Fabric) -> None:
        self.player, self.ema, self.objective, self.fabric = player, ema, objective, fabric
        self.network: nn.Module = player.raw
        self.ending = ""

    def step(self, iteration: int, real: Batch) -> Logs:
        """One optimizer turn."""
        with autocast(self.fabric):
            loss, logs = self.objective(self.player.module.train(), real, iteration / self.player.horizon)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the training loss is {value} at iteration {iteration}")
        norm = self.player.turn(iteration, loss)
        if norm is not None:
            self.ema.update()
            logs["grad_norm"] = norm
        return {"loss": value} | logs

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, EMA."""
        return {"player": self.player.state_dict(), "ema": self.ema.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue bit-exactly."""
        self.player.load_state_dict(state["player"])
        self.ema.load_state_dict(state["ema"])


def teacher_objective(
    raw: Teacher, schedule: Schedule, label_smoothing: float, label_drop: float, rng: torch.Generator
) -> Objective:
    """Masked cross-entropy on real tokens; the condition is dropped at rate `label_drop` for guidance."""

    def objective(net: nn.Module, real: Batch, progress: float) -> tuple[Tensor, Logs]:
        if real.tokens is None:
            raise DataError("training a teacher needs images (with a tokenizer) or tokens")
        drop = torch.rand(len(real), generator=rng, device=real.tokens.device) < label_drop
        null = raw.null(real.cond)
        cond = Cond(
            torch.where(drop, null.labels, real.cond.labels),
            real.cond.prompts,
            {
                k: torch.where(drop.view(-1, *[1] * (v.ndim - 1)), null.tensors[k], v)
                for k, v in real.cond.tensors.items()
            },
        )
        mask, x_t = remask(real.tokens, raw, schedule, rng)
        loss, _ = mdm_loss(net, x_t, real.tokens, mask, cond, label_smoothing)  # type: ignore[arg-type]
        return loss, {}

    return objective


def tokenizer_objective(raw: Tokenizer, rng: torch.Generator) -> Objective:
    """The tokenizer's own loss on images."""

    def objective(net: nn.Module, real: Batch, progress: float) -> tuple[Tensor, Logs]:
        return net.loss(_images(real), rng, progress)  # type: ignore[operator, no-any-return]

    return objective


def features_objective(raw: Features, rng: torch.Generator) -> Objective:
    """The feature network's own loss (cross-entropy of the labels) on images."""

    def objective(net: nn.Module, real: Batch, progress: float) -> tuple[Tensor, Logs]:
        return net.loss(_images(real), real.cond, rng)  # type: ignore[operator, no-any-return]

    return objective


def _images(real: Batch) -> Tensor:
    if real.images is None:
        raise DataError("this network trains on images, but the data gives none")
    return real.images
