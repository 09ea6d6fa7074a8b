"""Algorithm 1 of Soft-Di[M]O (arXiv 2509.22925), and with one term Algorithm 1 of Di[M]O (arXiv 2503.15457)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from softdimo.engine.ema import EMA
from softdimo.engine.mixed import autocast
from softdimo.engine.player import Player
from softdimo.errors import TrainingError
from softdimo.kinds import Batch, Logs, Teacher, Term, Tokenizer
from softdimo.math.init import Init
from softdimo.math.precision import wide
from softdimo.math.ranks import mean_over_ranks
from softdimo.math.rollout import Roll, rollout
from softdimo.math.soft import Relaxation
from softdimo.spec import GradientRatio


class Algorithm(Protocol):
    """What the loop runs: one iteration at a time, with a state that can be saved."""

    network: nn.Module
    """The network whose EMA is the product."""
    ema: EMA

    @property
    def ending(self) -> str:
        """Why training shall end before its last iteration, the same on all ranks; empty while it goes on."""
        ...

    def step(self, iteration: int, real: Batch) -> Logs:
        """One iteration; scalars for the log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that an iteration changes."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue bit-exactly."""
        ...


@runtime_checkable
class Ending(Protocol):
    """What a term has besides, if it may end the training: it is saved, and goes on when the run is resumed."""

    @property
    def ending(self) -> str:
        """Why training shall end now, the same on all ranks; empty while it goes on."""
        ...

    def seen(self) -> dict[str, Any]:
        """What it has gathered, as plain numbers and text."""
        ...

    def see(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


@dataclass
class Entry:
    """A term of L_gen in play: its weight, and the player that trains its critic."""

    name: str
    term: Term
    weight: float | GradientRatio
    critic: Player | None = None
    norm: float = 0.0
    """Running mean of the gradient norm at the logits, before the weight."""


class Distillation:
    """theta against its critics: L_gen = sum of weighted terms, then every critic on the same detached samples."""

    def __init__(
        self,
        generator: Player,
        ema: EMA,
        terms: Sequence[Entry],
        init: Init,
        relaxation: Relaxation,
        tokenizer: Tokenizer | None,
        rng: torch.Generator,
        fabric: Fabric,
        lead: int = 0,
        dropout: bool = False,
    ) -> None:
        self.generator, self.ema, self.terms, self.init, self.relaxation = generator, ema, list(terms), init, relaxation
        self.tokenizer, self.rng, self.fabric, self.lead, self.dropout = tokenizer, rng, fabric, lead, dropout
        self.network: nn.Module = generator.raw

    @property
    def ending(self) -> str:
        """What the first term says that wants to end the training."""
        return next((e.term.ending for e in self.terms if isinstance(e.term, Ending) and e.term.ending), "")

    def step(self, iteration: int, real: Batch) -> Logs:
        """One iteration of Algorithm 1."""
        logs: Logs = {}
        theta: Teacher = self.generator.module.train(self.dropout)  # type: ignore[assignment]
        turn = iteration >= self.lead and self.generator.due(iteration)

        with torch.set_grad_enabled(turn), autocast(self.fabric):
            # x_init -> z_theta -> x_theta
            roll, z = rollout(theta, real.cond, self.init.at(iteration), self.rng, self.relaxation, self.tokenizer)
            if turn:
                # d L_gen / d z = sum_i w_i d L_i / d z, each taken at the logits, then one backward through theta
                gradients = {entry.name: self._at_logits(entry, roll, iteration, logs) for entry in self.terms}
                total = self._weigh(gradients, logs)
        roll = roll.detach()  # lets go of what the terms' graphs hold
        if turn:
            norm = self.generator.turn(iteration, z, total.to(z.dtype))
            if norm is not None:
                logs["generator/grad_norm"] = norm
                self.ema.update()

        # psi, eta, ...: every term that owns a critic trains it on the same samples
        for entry in self.terms:
            if entry.critic is not None and entry.critic.due(iteration):
                with autocast(self.fabric), _wrapped(entry.term, entry.critic):
                    loss, info = entry.term.critic_loss(roll, real)
                self._finite(entry.name + "'s critic", loss, iteration)
                norm = entry.critic.turn(iteration, loss)
                logs |= {f"{entry.name}/{k}": v for k, v in info.items()}
                if norm is not None:
                    logs[f"{entry.name}/critic_grad_norm"] = norm
        return logs

    def _sharing(self, entry: Entry) -> contextlib.AbstractContextManager[None]:
        """In the generator's turn critics are plain functions, except one whose forward its own turn will re-use."""
        shares = entry.critic is not None and getattr(entry.term, "shares_forward", False)
        return _wrapped(entry.term, entry.critic) if shares and entry.critic is not None else contextlib.nullcontext()

    def _at_logits(self, entry: Entry, roll: Roll, iteration: int, logs: Logs) -> Tensor:
        """d L_i / d z, its graph gone; raises if the term is not finite or does not reach the logits."""
        with self._sharing(entry):
            loss, info = entry.term.generator(roll)
        for what, value in {"loss": loss, **info}.items():
            logs[f"{entry.name}/{what}"] = value.detach() if isinstance(value, Tensor) else value
        self._finite(entry.name, loss, iteration)
        if not loss.requires_grad:
            raise TrainingError(f"the term `{entry.name}` does not depend on the student's logits; it cannot train it")
        (gradient,) = torch.autograd.grad(loss, roll.logits, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise TrainingError(f"the term `{entry.name}` gives the student's logits no gradient")
        return gradient

    def _weigh(self, gradients: Mapping[str, Tensor], logs: Logs) -> Tensor:
        """Sum of weighted gradients; a ratio weight is set from running means of the norms, those of all ranks' batch.

        Each rank's loss is a mean over its own samples, so with W ranks its gradient there is W times that of the mean.
        """
        squares = torch.stack([wide(g).square().sum() for g in gradients.values()])
        squares = mean_over_ranks(squares) / self.fabric.world_size
        entries = {e.name: e for e in self.terms}
        for name, norm in zip(gradients, squares.sqrt().tolist(), strict=True):
            if not math.isfinite(norm):
                raise TrainingError(f"the term `{name}` gives the student's logits a gradient that is not finite")
            entry = entries[name]
            keep = entry.weight.smoothing if isinstance(entry.weight, GradientRatio) else 0.95
            entry.norm = norm if entry.norm == 0.0 else keep * entry.norm + (1 - keep) * norm
            logs[f"{name}/grad_at_logits"] = norm
        total: Tensor | None = None
        for name, gradient in gradients.items():
            w = self._weight(entries[name], entries)
            logs[f"{name}/weight"] = w
            total = w * gradient if total is None else total + w * gradient
        assert total is not None
        return total

    @staticmethod
    def _weight(entry: Entry, entries: Mapping[str, Entry]) -> float:
        if not isinstance(entry.weight, GradientRatio):
            return entry.weight
        reference = entries[entry.weight.of]
        assert isinstance(reference.weight, float | int)
        return entry.weight.ratio * abs(reference.weight) * reference.norm / max(entry.norm, 1e-12)

    def _finite(self, name: str, loss: Tensor, iteration: int) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss of `{name}` is {value} at iteration {iteration}")

    def state_dict(self) -> dict[str, Any]:
        """Student, EMA, and every critic with its optimizer; running gradient norms; what terms have seen."""
        return {
            "generator": self.generator.state_dict(),
            "ema": self.ema.state_dict(),
            "norms": {e.name: e.norm for e in self.terms},
            "critics": {e.name: e.critic.state_dict() for e in self.terms if e.critic is not None},
            "seen": {e.name: e.term.seen() for e in self.terms if isinstance(e.term, Ending)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue bit-exactly."""
        self.generator.load_state_dict(state["generator"])
        self.ema.load_state_dict(state["ema"])
        for entry in self.terms:
            entry.norm = state["norms"][entry.name]
            if entry.critic is not None:
                entry.critic.load_state_dict(state["critics"][entry.name])
            if isinstance(entry.term, Ending):
                entry.term.see(state["seen"][entry.name])


@contextlib.contextmanager
def _wrapped(term: Term, critic: Player) -> Iterator[None]:
    """The term sees its critic as the strategy wraps it, so that gradients are averaged over ranks."""
    term.critic = critic.module
    try:
        yield
    finally:
        term.critic = critic.raw
