"""Divergences between student (auxiliary) p and teacher q at masked units, and their gradients in the logits of p.

With u = q / p, a = log p - log q and <p, x> = sum_v p_v x_v, each D = sum_v p f(u). Its gradient with respect to the
logits of p is p (psi - <p, psi>) with psi = f(u) - u f'(u); a constant added to psi changes nothing.

| name      | D                             | f(u)                                     | p psi              |
|-----------|-------------------------------|------------------------------------------|--------------------|
| fkl       | KL(q, p)                      | u log u                                  | -q                 |
| rkl       | KL(p, q)                      | -log u                                   | p a                |
| jeffreys  | (1 - b) KL(q, p) + b KL(p, q) | ((1 - b) u - b) log u                    | -(1 - b) q + b p a |
| js        | (KL(p, m) + KL(q, m)) / 2     | (u log u - (1 + u) log((1 + u) / 2)) / 2 | p l / 2            |
| hellinger | sum (sqrt q - sqrt p)^2       | (sqrt u - 1)^2                           | -sqrt(p q)         |
| tv        | sum abs(p - q) / 2            | abs(u - 1) / 2                           | p sign(p - q) / 2  |

So the gradient of fkl is p - q, of rkl p (a - <p, a>). m = (p + q) / 2 and l = log(p / m) = log 2 + log sigmoid(a).
b is beta in the convention of Di[M]O (equation 8): 0 is the forward KL, 1 the reverse. For beta < 0 D is no divergence
(stationary at p = q, but unbounded below): forward KL with a push away from the modes; clamping and clipping guard it.

All inputs are logits [N V] of masked units only. Everything here is computed without autograd, in float32 for lower
precisions (float64 stays), a few rows at a time: beside the result only a fraction of one [N V] tensor is ever alive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import logsigmoid

from softdimo.shapes import UnitLogits
from softdimo.spec import Positive, Settings

UnitValues = Float[Tensor, "N"]
Normalization = Literal["sum", "mean_masked"]

CLAMP = 20.0
_CHUNKS, _SMALLEST = 32, 2**16
"""Rows are processed in at most 32 chunks, of about 65536 elements or more."""


class _Row(NamedTuple):
    """One divergence as functions of p, q and a = log p - log q: the summand of D, and p psi."""

    value: Callable[[Tensor, Tensor, Tensor], Tensor]
    flow: Callable[[Tensor, Tensor, Tensor], Tensor]


def _log_over_mean(a: Tensor) -> Tensor:
    """log(p / m) with m = (p + q) / 2, as a function of a = log p - log q."""
    return math.log(2) + logsigmoid(a)


_TABLE = {
    "fkl": _Row(lambda p, q, a: -q * a, lambda p, q, a: -q),
    "rkl": _Row(lambda p, q, a: p * a, lambda p, q, a: p * a),
    "js": _Row(
        lambda p, q, a: 0.5 * (p * _log_over_mean(a) + q * _log_over_mean(-a)),
        lambda p, q, a: 0.5 * p * _log_over_mean(a),
    ),
    "hellinger": _Row(lambda p, q, a: (q.sqrt() - p.sqrt()).square(), lambda p, q, a: -p.sqrt() * q.sqrt()),
    "tv": _Row(lambda p, q, a: 0.5 * (p - q).abs(), lambda p, q, a: 0.5 * p * (p - q).sign()),
}


class Divergence(Settings):
    """D(q || p) between student p and teacher q."""

    name: Literal["fkl", "rkl", "jeffreys", "js", "hellinger", "tv"] = "fkl"
    """Forward KL, reverse KL, generalized Jeffreys, Jensen-Shannon, squared Hellinger, total variation."""
    beta: float = 0.0
    """Of `jeffreys` only: (1 - beta) FKL + beta RKL. Di[M]O: -0.2 is best for MaskGIT; Meissonic needs [-0.1, 0.2]."""
    clamp: Positive = CLAMP
    """Bound on the absolute log-ratio |a|; the public code has none (a large number reproduces it)."""

    @model_validator(mode="after")
    def _beta_belongs_to_jeffreys(self) -> Divergence:
        if self.beta != 0 and self.name != "jeffreys":
            raise ValueError(
                f"beta = {self.beta} has no meaning for '{self.name}'; set name: jeffreys or leave beta out"
            )
        return self

    def value(self, p_logits: UnitLogits, q_logits: UnitLogits) -> UnitValues:
        """D of every unit, [N] in nats; no gradient."""
        return _by_rows(lambda p, q, a: self._row.value(p, q, a).sum(-1), self.clamp, p_logits, q_logits)

    def gradient(self, p_logits: UnitLogits, q_logits: UnitLogits) -> UnitLogits:
        """dD/dz_p of every unit, [N V]: Di[M]O's g with the auxiliary's logits as p (equation 7). Rows sum to 0."""
        return _by_rows(lambda p, q, a: _centered(p, self._row.flow(p, q, a)), self.clamp, p_logits, q_logits)

    @property
    def _row(self) -> _Row:
        if self.name != "jeffreys":
            return _TABLE[self.name]
        b = self.beta
        return _Row(lambda p, q, a: (b * p - (1 - b) * q) * a, lambda p, q, a: b * p * a - (1 - b) * q)


Function = Callable[[Tensor], Tensor]
"""f or f', applied elementwise to u = q / p."""


def f_divergence_value(f: Function, p_logits: UnitLogits, q_logits: UnitLogits, clamp: float = CLAMP) -> UnitValues:
    """sum_v p f(q / p) of every unit, [N]; f is convex with f(1) = 0; |log u| is clamped."""
    return _by_rows(lambda p, q, a: (p * f(a.neg().exp())).sum(-1), clamp, p_logits, q_logits)


def f_divergence_gradient(
    f: Function, df: Function, p_logits: UnitLogits, q_logits: UnitLogits, clamp: float = CLAMP
) -> UnitLogits:
    """Gradient of `f_divergence_value` in the p-logits, p (psi - <p, psi>) with psi = f(u) - u f'(u), [N V]."""

    def row(p: Tensor, q: Tensor, a: Tensor) -> Tensor:
        u = a.neg().exp()
        return _centered(p, p * (f(u) - u * df(u)))

    return _by_rows(row, clamp, p_logits, q_logits)


def softmax_gradient(
    student_logits: UnitLogits, p_logits: UnitLogits, q_logits: UnitLogits, clamp: float = CLAMP
) -> UnitLogits:
    """Gradient through the student's own softmax (D-MMD, IDLM): p_theta (a - <p_theta, a>), a = log p - log q, [N V].

    It is the derivative of <p_theta, a> with a held fixed, in the student's logits at x_init; p is the auxiliary.
    Unlike Di[M]O's gradient in the auxiliary's logits it vanishes where p_theta is one-hot.
    """
    return _by_rows(lambda p, q, a, student: _centered(student, student * a), clamp, p_logits, q_logits, student_logits)


def surrogate(
    z_masked: UnitLogits,
    g: UnitLogits,
    batch: int,
    normalization: Normalization = "sum",
    counts: Int[Tensor, "B"] | None = None,
) -> Float[Tensor, ""]:
    """Scalar whose gradient in the student's logits z is g / B (`sum`), or g / (B L_M) (`mean_masked`).

    The dot form <z, sg(g)>: its gradient is right, its value means nothing (log `Divergence.value`). The public Di[M]O
    code sums over masked units; the paper averages over the L_M masked units of each sample.

    Args:
        z_masked: student logits at the masked units, ordered as `mask.nonzero()`.
        g: gradient of the divergence at the same units; detached here.
        batch: B.
        normalization: `sum` or `mean_masked`.
        counts: L_M of every sample, `mask.flatten(1).sum(1)`; needed by `mean_masked` only.
    """
    dots = (z_masked * g.detach()).sum(-1)
    if normalization == "sum":
        return dots.sum() / batch
    if counts is None:
        raise ValueError("normalization 'mean_masked' needs counts, the number of masked units of each sample")
    return (dots / counts.repeat_interleave(counts, output_size=len(dots))).sum() / batch


def _centered(p: Tensor, flow: Tensor) -> Tensor:
    """p (psi - <p, psi>) from flow = p psi."""
    return flow - p * flow.sum(-1, keepdim=True)


def _by_rows(fn: Callable[..., Tensor], clamp: float, *logits: UnitLogits) -> Tensor:
    """Stack fn(p, q, a, ...) over chunks of rows, where p, q, ... are the softmaxes of `logits` and |a| <= clamp."""
    dtype = reduce(torch.promote_types, (z.dtype for z in logits), torch.float32)
    rows, classes = logits[0].shape
    step = max(1, -(-rows // _CHUNKS), _SMALLEST // classes)
    out, end = torch.empty(0), 0
    with torch.no_grad():
        for chunk in zip(*(torch.split(z, step) for z in logits), strict=True):
            log_p, log_q, *others = (z.to(dtype).log_softmax(-1) for z in chunk)
            # Equal log-probabilities have ratio 0, also where both exclude the class (-inf - -inf); NaN stays NaN.
            a = (log_p - log_q).masked_fill_(log_p == log_q, 0.0).clamp_(-clamp, clamp)
            part = fn(log_p.exp_(), log_q.exp_(), a, *(z.exp_() for z in others))
            begin, end = end, end + len(part)
            out = part.new_empty(rows, *part.shape[1:]) if begin == 0 else out
            out[begin:end] = part
    return out
