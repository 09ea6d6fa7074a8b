"""Keeping the best of several candidates per condition, and best-of-N, which every search is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from softdimo.errors import TrainingError

if TYPE_CHECKING:
    from softdimo.kinds import Cond
    from softdimo.shapes import Embedding, Image, PerSample


def best_of(
    n: int,
    generator: Callable[[Embedding, Cond], Image],
    score: Callable[[Image, Cond], PerSample],
    start: Callable[[Cond, torch.Generator], Embedding],
    cond: Cond,
    rng: torch.Generator,
) -> tuple[Embedding, PerSample, Float[Tensor, "n B"]]:
    """The best of n fresh starts for each of B conditions, its score, and all scores: n forward-equivalents.

    Starts are drawn one after the other, so the candidates of a smaller n are the first ones of a larger n from the
    same `rng`: the score cannot fall with n. Needs no gradient of the score.
    """
    best: tuple[Embedding, PerSample] | None = None
    trace = []
    with torch.no_grad():
        for _ in range(n):
            e = start(cond, rng)
            value = finite(score(generator(e, cond), cond))
            best = (e, value) if best is None else better(best, (e, value))
            trace.append(value)
    assert best is not None
    return *best, torch.stack(trace)


def better(old: tuple[Embedding, PerSample], new: tuple[Embedding, PerSample]) -> tuple[Embedding, PerSample]:
    """Per condition the pair (e, score) with the higher score; the old one on a tie."""
    wins = new[1] > old[1]
    return torch.where(wins[:, None, None], new[0], old[0]), torch.where(wins, new[1], old[1])


def finite(score: PerSample) -> Float[Tensor, "B"]:
    """`score`, or TrainingError where a reward gives a value that cannot be ranked."""
    bad = int((~score.isfinite()).sum())
    if bad:
        raise TrainingError(
            f"search: {bad} of {len(score)} scores are not finite; check the reward's weights and its images"
        )
    return score
