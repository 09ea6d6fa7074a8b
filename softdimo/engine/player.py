"""A player of Algorithm 1: a network, its optimizer, its cadence. Gradients are never stopped by flipping flags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn

from softdimo import spec
from softdimo.engine.sharding import methods, piece, whole
from softdimo.errors import TrainingError


def make_optimizer(settings: spec.Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the module's trainable parameters (fused or foreach, as torch chooses for the device)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError(f"{type(module).__name__} has no trainable parameters")
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(
        parameters, settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay, fused=True
    )


def learning_rate(settings: spec.Optimizer, iteration: int, horizon: int) -> float:
    """Learning rate at an iteration: linear warm-up, then constant, cosine or linear decay to `final` x peak."""
    if iteration < settings.warmup:
        return settings.lr * (iteration + 1) / settings.warmup
    done = (iteration - settings.warmup) / max(1, horizon - settings.warmup)
    if settings.decay == "cosine":
        return settings.lr * (settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * done)))
    if settings.decay == "linear":
        return settings.lr * (settings.final + (1 - settings.final) * (1 - done))
    return settings.lr


class Player:
    """Takes turns: zero gradients, back-propagate, clip, step. `module` is wrapped for the strategy, `raw` is not."""

    def __init__(self, name: str, raw: nn.Module, settings: spec.Player, horizon: int, fabric: Fabric) -> None:
        self.name, self.raw, self.settings, self.horizon, self.fabric = name, raw, settings, horizon, fabric
        self.module = fabric.setup_module(raw)
        for method in methods(raw):
            self.module.mark_forward_method(method)
        self.optimizer = cast(
            _FabricOptimizer, fabric.setup_optimizers(make_optimizer(settings.optimizer, self.module))
        )
        self.trained = {n: p for n, p in raw.named_parameters() if p.requires_grad}
        self.pending = 0
        """Turns whose gradients wait for the optimizer step (accumulation)."""

    def due(self, iteration: int) -> bool:
        """Whether this player takes a turn at the iteration."""
        return iteration % self.settings.every == 0

    def turn(self, iteration: int, output: Tensor, gradient: Tensor | None = None) -> float | None:
        """Back-propagate `output` (a scalar loss, or logits with their `gradient`); step when enough turns are in.

        Returns the gradient norm before clipping when a step was taken. Gradients go with the step: those of two
        players are never in memory together.
        """
        self.fabric.backward(output, gradient) if gradient is not None else self.fabric.backward(output)
        self.pending += 1
        if self.pending < self.settings.accumulate:
            return None
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        if self.pending > 1:
            torch._foreach_div_(gradients, float(self.pending))
        self.pending = 0
        norm, limit = float(whole(nn.utils.get_total_norm(gradients))), self.settings.clip
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient of `{self.name}` is not finite at iteration {iteration}")
        if limit is not None and norm > limit:
            torch._foreach_mul_(gradients, limit / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings.optimizer, iteration, self.horizon)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer state, and gradients that wait for their step; in pieces where the strategy shards."""
        waiting = {n: p.grad for n, p in self.trained.items() if self.pending and p.grad is not None}
        return {
            "weights": self.raw.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pending": self.pending,
            "gradients": waiting,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue bit-exactly from a `state_dict` whose tensors are whole."""
        own = self.raw.state_dict()
        self.raw.load_state_dict({n: piece(v, own[n]) for n, v in state["weights"].items()})
        trained = list(self.trained.values())
        moments = {
            i: {k: piece(v, trained[i]) if isinstance(v, Tensor) and k != "step" else v for k, v in each.items()}
            for i, each in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict(state["optimizer"] | {"state": moments})
        self.pending = int(state["pending"])
        for name, gradient in state["gradients"].items():
            self.trained[name].grad = piece(gradient, self.trained[name])
