"""Test-time embedding optimization of Soft-Di[M]O (arXiv 2509.22925): climb the reward in the generator's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from softdimo.errors import PluginError
from softdimo.kinds import Cond, Context, Found
from softdimo.math.best import finite
from softdimo.shapes import Embedding, Image, PerSample
from softdimo.spec import NonNegative, Positive, Spec


class TTEO(Spec):
    """e* = arg max R(Dec(z_theta(e_in)), c) over the input embedding e_in; weights stay fixed.

    Every start is optimized on its own; the result is the best of all evaluated points, the starts (iteration 0)
    included, so it is never worse than best-of-N over the `candidates` (or the `starts`). The score of a point is that
    of the image which `decode` gives for it: what is optimized is what the user gets. With `argmax` that image consists
    of tokens and its gradient is the soft decode's (straight through); with `soft` forward and gradient agree, but
    images may blur.

    Costs candidates + starts * (1 + 3 * iterations) forward-equivalents per condition, counting the generator only: a
    forward 1, a backward 2 (frozen weights make it cheaper in fact). Decoder and reward run with every pass, uncounted.
    """

    starts: Annotated[int, Field(ge=1)] = 4
    """Independent starts per condition, optimized as one batch."""
    candidates: Annotated[int, Field(ge=1)] | None = None
    """Random inputs that are scored first; the best `starts` of them become the starts. Null: no screening (the paper).
    Scoring is cheap next to optimizing: one or two starts out of 16 beat four random ones at lower cost."""
    iterations: Annotated[int, Field(ge=0)] = 4
    """Steps per start; 0 is best-of-N."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """`adam` moves every coordinate by about `lr` per step; `sgd` follows the plain gradient (the paper: lr 0.2)."""
    lr: Positive = 0.05
    """Step size for e_in measured in units of the embedding table's root mean square (u = e_in / rms is what moves)."""
    norm_prior: NonNegative = 0.0
    """Weight of -mean_i (|e_i| - |e_i at the start|)^2 / rms^2 in the gradient (not in the score): the second-order
    form of ReNO's norm prior, which keeps tokens where the generator has seen them. 0 is off, as in the paper."""
    decode: Literal["argmax", "soft"] = "argmax"
    """What is scored, and what the user gets: the most probable tokens, or the soft decode."""
    unit: Positive | None = None
    """Length of one unit of `lr`; the root mean square of the teacher's input table when null."""

    @model_validator(mode="after")
    def _enough(self) -> TTEO:
        if self.candidates is not None and self.candidates < self.starts:
            raise ValueError(f"candidates: {self.candidates} are fewer than starts: {self.starts}")
        return self

    def build(self, context: Context) -> TTEO:
        """These settings, with the unit filled in."""
        if self.unit is not None or context.teacher is None:
            return self
        return self.model_copy(update={"unit": float(context.teacher.table_rms().detach())})

    def run(
        self,
        generator: Callable[[Embedding, Cond], Image],
        score: Callable[[Image, Cond], PerSample],
        start: Callable[[Cond, torch.Generator], Embedding],
        cond: Cond,
        rng: torch.Generator,
    ) -> Found:
        """Best point of each condition.

        Raises PluginError where the score has no gradient, or the unit of the step is unknown.
        """
        if self.iterations and not getattr(score, "differentiable", True):
            raise PluginError(
                "tteo: this reward is not differentiable, so it cannot guide an embedding; use best_of_n, or tteo "
                "with a differentiable reward and this one under `held_out`"
            )
        if self.unit is None:
            raise PluginError("tteo: the unit of `lr` is unknown; build with a teacher, or set `unit`")
        S, B = self.starts, len(cond)
        e0 = self._starts(generator, score, start, cond, rng)
        conds = Cond.cat([cond] * S)
        step = self._stepper(e0)
        e, points, scores = e0, [], []
        for iteration in range(self.iterations + 1):
            last = iteration == self.iterations
            with torch.set_grad_enabled(not last):
                e = e.detach().requires_grad_(not last)
                value = finite(score(generator(e, conds), conds))
            points.append(e.detach())
            scores.append(value.detach())
            if not last:
                e = step(e.detach(), self._gradient(e, e0, value))
        trace = torch.stack(scores).view(-1, S, B).transpose(0, 1)
        path = torch.stack(points).view(-1, S, *e0[:B].shape)
        best, index = trace.flatten(0, 1).max(0)
        winner, when = index // len(scores), index % len(scores)
        each = torch.arange(B, device=e0.device)
        screening = float(self.candidates or 0)
        passes = screening + S * (1.0 + 3.0 * self.iterations)
        return Found(path[when, winner, each], best, trace, passes, screening, path[:, winner, each])

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
        for _ in range(self.candidates):
            drawn.append(start(cond, rng))
            scores.append(finite(score(generator(drawn[-1], cond), cond)))
        chosen = torch.stack(scores).topk(self.starts, dim=0).indices
        return torch.stack(drawn)[chosen, torch.arange(len(cond), device=chosen.device)].flatten(0, 1)

    def _gradient(self, e: Embedding, e0: Embedding, value: PerSample) -> Embedding:
        """d(score + prior)/d(e / unit); samples do not mix, so the gradient of the sum is each one's own."""
        if not value.requires_grad:
            raise PluginError("tteo: the score does not depend differentiably on the input embedding; use best_of_n")
        assert self.unit is not None
        objective = value.sum()
        if self.norm_prior:
            stretch = (e.norm(dim=-1) - e0.norm(dim=-1)) / self.unit
            objective = objective - self.norm_prior * stretch.square().mean(1).sum()
        (gradient,) = torch.autograd.grad(objective, e)
        return gradient * self.unit

    def _stepper(self, e0: Embedding) -> Callable[[Embedding, Embedding], Embedding]:
        """One step uphill: (e, gradient with respect to e / unit) -> e."""
        assert self.unit is not None
        length = self.lr * self.unit
        if self.optimizer == "sgd":
            return lambda e, g: e + length * g
        moments: list[Tensor] = [torch.zeros_like(e0), torch.zeros_like(e0)]
        t = 0

        def adam(e: Embedding, g: Embedding) -> Embedding:
            nonlocal t
            t += 1
            moments[0].lerp_(g, 0.1)
            moments[1].lerp_(g.square(), 0.001)
            mean, square = moments[0] / (1 - 0.9**t), moments[1] / (1 - 0.999**t)
            return e + length * mean / (square.sqrt() + 1e-8)

        return adam
