"""Test-time embedding optimization of Soft-Di[M]O (arXiv 2509.22925): climb the reward in the generator's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from softdimo.errors import PluginError
from softdimo.kinds import Cond, Context, Found
from softdimo.math.best import Points, evaluate, screen
from softdimo.shapes import Embedding, Image, PerSample
from softdimo.spec import Fraction, NonNegative, Positive, Spec
from softdimo_plugins.search.ascent import Ascent, Optimizer
from softdimo_plugins.search.best_of_n import Rows
from softdimo_plugins.search.norm_prior import Of, log_norm


class TTEO(Spec):
    """e* = arg max R(Dec(z_theta(e_in)), c) over the input embedding e_in; weights stay fixed.

    Every start is optimized on its own; the result is the best of all evaluated points, the starts (iteration 0)
    included, so it is never worse than best-of-N over the `candidates` (or the `starts`). The score of a point is that
    of the image which `decode` gives for it: what is optimized is what the user gets. With `argmax` that image consists
    of tokens and its gradient is the soft decode's (straight through); with `soft` forward and gradient agree, but
    images may blur.

    Costs candidates + starts * (1 + 3 * iterations) forward-equivalents per condition, counting the generator only: a
    forward 1, a backward 2 (frozen weights make it cheaper in fact). Decoder and reward run with every pass, uncounted.
    With `patience` that is the most: a start that stops after k points has cost 3 k.
    """

    starts: Annotated[int, Field(ge=1)] = 4
    """Independent starts per condition, optimized as one batch."""
    candidates: Annotated[int, Field(ge=1)] | None = None
    """Random inputs that are scored first; the best `starts` of them become the starts. Null: no screening (the paper).
    Scoring is cheap next to optimizing: one or two starts out of 16 beat four random ones at lower cost."""
    iterations: Annotated[int, Field(ge=0)] = 4
    """Steps per start; 0 is best-of-N."""
    optimizer: Optimizer = "adam"
    """`adam` moves every coordinate by about `lr` per step; `normalized` moves each sample along its gradient, by `lr`
    in the root mean square exactly; `sgd` adds `lr` times the gradient (the paper: 0.2), so the reward sets the size.
    """
    lr: Positive = 0.05
    """Step size for e_in measured in units of the embedding table's root mean square (u = e_in / rms is what moves).
    With `adam` and `normalized`, around 0.1 a step is as far as it pays to go; several times that does harm."""
    momentum: Fraction = 0.0
    """Momentum of `sgd` and `normalized`."""
    nesterov: bool = False
    """Nesterov's look-ahead for that momentum, as in ReNO (arXiv 2406.04312)."""
    clip: Positive | None = None
    """Norm above which the gradient of a sample (with respect to u, all of its tokens together) is scaled down; ReNO
    has 0.1. Null: no clipping, as in the paper."""
    norm_prior: NonNegative = 0.0
    """Weight of a norm prior, a log density in nats per token, in the gradient (not in the score): it keeps e_in where
    the generator has seen its inputs. ReNO has 0.01 for its whole noise. 0 is off, as in the paper."""
    norm_of: Of = "start"
    """Whose norm has a prior: each token's, about its length at the `start` (second order of ReNO's); each token's, as
    ReNO's chi density in units of the `table`; or the embedding `noise`, whose Gaussian law is exact but narrow."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop a start whose score has not risen for so many steps. Null: all take all steps."""
    decode: Literal["argmax", "soft"] = "argmax"
    """What is scored, and what the user gets: the most probable tokens, or the soft decode."""
    rows: Rows = None
    """Images (one per start and condition) in memory at once; the `rows` of the search section when null."""
    unit: Positive | None = None
    """Length of one unit of `lr`; the root mean square of the teacher's input table when null."""
    noise: Positive | None = None
    """Standard deviation of the embedding noise, for `norm_of: noise`; that of the recipe's `init` when null."""

    @model_validator(mode="after")
    def _consistent(self) -> TTEO:
        if self.candidates is not None and self.candidates < self.starts:
            raise ValueError(f"candidates: {self.candidates} are fewer than starts: {self.starts}")
        if self.momentum and self.optimizer == "adam":
            raise ValueError("momentum: adam has its own; it is for sgd and normalized")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: looks ahead along a momentum; set `momentum`, for example 0.9")
        return self

    def smoke(self) -> TTEO:
        """One step from two starts at the most, the best of three random inputs where there is a choice."""
        few = {"starts": min(2, self.starts), "iterations": min(1, self.iterations)}
        choice = None if self.candidates is None else min(3, self.candidates)
        return self.model_copy(update=few | {"candidates": choice})

    def build(self, context: Context) -> TTEO:
        """These settings, with units, noise and rows filled in."""
        found: dict[str, float | None] = {"rows": self.rows or context.rows}
        if context.teacher is not None:
            rms = float(context.teacher.table_rms().detach())
            found["unit"] = self.unit or rms
            if context.init is not None and context.init.sigma > 0:
                own = context.init.sigma * (rms if context.init.noise_rms == "table" else 1.0)
                found["noise"] = self.noise or own
        return self.model_copy(update=found)

    def passes(self) -> float:
        """Forward-equivalents per condition, the most where starts may stop early."""
        return float(self.candidates or 0) + self.starts * (1.0 + 3.0 * self.iterations)

    def run(
        self,
        generator: Callable[[Embedding, Cond], Image],
        score: Callable[[Image, Cond], PerSample],
        start: Callable[[Cond, torch.Generator], Embedding],
        cond: Cond,
        rng: torch.Generator,
    ) -> Found:
        """Best point of each condition.

        Raises PluginError where the score has no gradient, or the unit of the step (or the noise) is unknown.
        """
        unit = self._checked(score)
        S, B = self.starts, len(cond)
        e0 = self._starts(generator, score, start, cond, rng)
        conds, climb = Cond.cat([cond] * S), Ascent(self.optimizer, self.lr * unit, *self._how())
        e, history = e0, _History(len(e0), e0.device)
        for iteration in range(self.iterations + 1):
            last, at = iteration == self.iterations, history.climbing
            if not len(at):
                break
            found = evaluate(generator, score, e[at], conds[at], self.rows, gradient=not last)
            history.add(e, at, found, self.patience)
            if found.gradient is not None:
                slope = torch.zeros_like(e)
                slope[at] = self._uphill(e[at], e0[at], found.gradient)
                stepped = climb.step(e, slope)
                e = torch.where(history.goes[:, None, None], stepped, e)
        trace, path, rewards = history.whole(self.iterations + 1, S, B)
        best, index = trace.flatten(0, 1).max(0)
        winner, when = index // trace.shape[1], index % trace.shape[1]
        each, screening = torch.arange(B, device=e0.device), float(self.candidates or 0)
        stopped = self.patience is not None
        spent = history.cost.view(S, B).sum(0) + screening
        return Found(
            path[when, winner, each], best, trace, float(spent.mean()), screening, path[:, winner, each], rewards,
            points=history.points.view(S, B) if stopped else None, spent=spent if stopped else None,
        )  # fmt: skip

    def _how(self) -> tuple[float, bool, float | None]:
        return self.momentum, self.nesterov, self.clip

    def _checked(self, score: Callable[[Image, Cond], PerSample]) -> float:
        """The unit of a step, where all that is needed is known."""
        if self.iterations and not getattr(score, "differentiable", True):
            raise PluginError(
                "tteo: this reward is not differentiable, so it cannot guide an embedding; use best_of_n, or tteo "
                "with a differentiable reward and this one under `held_out`"
            )
        if self.unit is None:
            raise PluginError("tteo: the unit of `lr` is unknown; build with a teacher, or set `unit`")
        if self.norm_prior and self.norm_of == "noise" and self.noise is None:
            raise PluginError("tteo: there is no embedding noise (init.sigma is 0) whose norm could have a prior; set "
                              "`noise`, or `norm_of: start`")  # fmt: skip
        return self.unit

    @torch.no_grad()
    def _starts(
        self,
        generator: Callable[[Embedding, Cond], Image],
        score: Callable[[Image, Cond], PerSample],
        start: Callable[[Cond, torch.Generator], Embedding],
        cond: Cond,
        rng: torch.Generator,
    ) -> Embedding:
        """[starts * B L D], start by start: random, or the best of the candidates in falling order of their scores."""
        if self.candidates is None:
            return torch.cat([start(cond, rng) for _ in range(self.starts)])
        drawn, scores = [], []
        for e, value, _ in screen(self.candidates, generator, score, start, cond, rng, self.rows):
            drawn.append(e)
            scores.append(value)
        chosen = torch.stack(scores).topk(self.starts, dim=0).indices
        return torch.stack(drawn)[chosen, torch.arange(len(cond), device=chosen.device)].flatten(0, 1)

    def _uphill(self, e: Embedding, e0: Embedding, gradient: Embedding) -> Embedding:
        """d(score + prior)/d(e / unit)."""
        assert self.unit is not None
        if self.norm_prior:
            with torch.enable_grad():
                at = e.detach().requires_grad_()
                prior = log_norm(at, e0, self.unit, self.norm_of, self.noise or 1.0).sum()
                gradient = gradient + self.norm_prior * torch.autograd.grad(prior, at)[0]
        return gradient * self.unit


class _History:
    """Every point of every start [N = starts * B]; those that have stopped stay where they are."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.places: list[Embedding] = []
        self.scores: list[Tensor] = []
        self.rewards: dict[str, list[Tensor]] = {}
        self.goes = torch.ones(n, dtype=torch.bool, device=device)
        self.points = torch.zeros(n, dtype=torch.int64, device=device)
        self.cost = torch.zeros(n, device=device)
        self.top = torch.full((n,), -torch.inf, device=device)
        self.idle = torch.zeros(n, dtype=torch.int64, device=device)

    @property
    def climbing(self) -> Tensor:
        """Places of the starts that have not stopped."""
        return self.goes.nonzero()[:, 0]

    def add(self, e: Embedding, at: Tensor, found: Points, patience: int | None) -> None:
        """The points that were evaluated at `at`; starts without a better score for `patience` of them stop."""
        self.places.append(e.detach())
        self.scores.append(_put(self.scores, at, found.score, len(e)))
        for name, reward in found.rewards.items():
            kept = self.rewards.setdefault(name, [])
            kept.append(_put(kept, at, reward, len(e)))
        self.points[at] += 1
        self.cost[at] += 1.0 if found.gradient is None else 3.0
        better = self.scores[-1] > self.top
        self.top = torch.where(better, self.scores[-1], self.top)
        self.idle = torch.where(better, 0, self.idle + 1)
        if patience is not None:
            self.goes &= self.idle < patience

    def whole(self, points: int, S: int, B: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Scores [S points B], places [points S B L D] and rewards [S points B]; the last stands for all after it."""

        def full(kept: list[Tensor]) -> Tensor:
            rows = torch.stack([*kept, *kept[-1:] * (points - len(kept))])
            return rows.view(points, S, B, *rows.shape[2:])

        rewards = {name: full(kept).transpose(0, 1) for name, kept in self.rewards.items()}
        return full(self.scores).transpose(0, 1), full(self.places), rewards


def _put(kept: list[Tensor], at: Tensor, value: Tensor, n: int) -> Tensor:
    """The newest values [n], changed at `at`."""
    new = kept[-1].clone() if kept else value.new_zeros(n)
    new[at] = value
    return new
