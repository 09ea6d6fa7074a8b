"""Scoring embeddings a few at a time, and best-of-N, which every search is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softdimo.errors import PluginError, TrainingError

if TYPE_CHECKING:
    from softdimo.kinds import Cond
    from softdimo.shapes import Embedding, Image, PerSample

    Generator = Callable[[Embedding, Cond], Image]
    Score = Callable[[Image, Cond], PerSample]
    Start = Callable[[Cond, torch.Generator], Embedding]


class Points(NamedTuple):
    """Embeddings that were scored, without a graph."""

    score: PerSample
    """[N]."""
    rewards: dict[str, PerSample]
    """Each reward by itself; empty where the score does not name them."""
    gradient: Embedding | None
    """d score / d e [N L D], if asked for."""


def named(score: Score, img: Image, cond: Cond) -> tuple[PerSample, Mapping[str, PerSample]]:
    """The score of images, and the rewards that it is made of, where it has a method `each` that tells them apart."""
    each = getattr(score, "each", None)
    if each is None:
        return score(img, cond), {}
    found: tuple[PerSample, Mapping[str, PerSample]] = each(img, cond)
    return found


def evaluate(
    generator: Generator, score: Score, e: Embedding, cond: Cond, rows: int | None = None, gradient: bool = False
) -> Points:
    """Score the images of embeddings [N L D], `rows` of them at a time (all at once when None).

    Only one such chunk, and its graph where a `gradient` is asked for, is in memory; samples do not mix, so the result
    does not depend on `rows`. TrainingError for scores that cannot be ranked; PluginError where there is no gradient.
    """
    chunks = []
    step = rows or max(1, len(e))
    for first in range(0, len(e), step):
        part, to = e[first : first + step].detach(), cond[first : first + step]
        if gradient:
            part.requires_grad_()
        with torch.set_grad_enabled(gradient):
            value, rewards = named(score, generator(part, to), to)
            finite(value)
            slope = None
            if gradient:
                if not value.requires_grad:
                    raise PluginError(
                        "the score does not depend differentiably on the input embedding; search with best_of_n"
                    )
                (slope,) = torch.autograd.grad(value.sum(), part)
        chunks.append((value.detach(), {name: r.detach() for name, r in rewards.items()}, slope))
    return Points(
        torch.cat([value for value, _, _ in chunks]),
        {name: torch.cat([rewards[name] for _, rewards, _ in chunks]) for name in chunks[0][1]},
        torch.cat([slope for _, _, slope in chunks if slope is not None]) if gradient else None,
    )


class Best(NamedTuple):
    """What best-of-N found."""

    e: Embedding
    """[B L D]."""
    score: PerSample
    trace: Float[Tensor, "n B"]
    """Every score."""
    rewards: dict[str, Float[Tensor, "n B"]]
    """Each reward by itself, where the score names them."""


def best_of(
    n: int, generator: Generator, score: Score, start: Start, cond: Cond, rng: torch.Generator, rows: int | None = None
) -> Best:
    """The best of n fresh starts for each of B conditions: n forward-equivalents. Needs no gradient of the score.

    Starts are drawn one after the other, so the candidates of a smaller n are the first ones of a larger n from the
    same `rng`: the score cannot fall with n. With `rows`, as many go through the networks at once as fit into that.
    """
    best: tuple[Embedding, PerSample] | None = None
    scores: list[PerSample] = []
    traces: dict[str, list[PerSample]] = {}
    for e, value, rewards in screen(n, generator, score, start, cond, rng, rows):
        best = (e, value) if best is None else better(best, (e, value))
        scores.append(value)
        for name, reward in rewards.items():
            traces.setdefault(name, []).append(reward)
    assert best is not None
    return Best(*best, torch.stack(scores), {name: torch.stack(kept) for name, kept in traces.items()})


@torch.no_grad()
def screen(
    n: int, generator: Generator, score: Score, start: Start, cond: Cond, rng: torch.Generator, rows: int | None = None
) -> Iterator[tuple[Embedding, PerSample, dict[str, PerSample]]]:
    """n fresh starts, one after the other, each with its score and rewards, for all conditions at once.

    With `rows`, as many starts go through the networks together as fit into that.
    """
    B, together = len(cond), max(1, (rows or 1) // len(cond))
    for first in range(0, n, together):
        starts = [start(cond, rng) for _ in range(min(together, n - first))]
        value, rewards, _ = evaluate(generator, score, torch.cat(starts), cond.cat([cond] * len(starts)), rows)
        for i, e in enumerate(starts):
            one = slice(i * B, (i + 1) * B)
            yield e, value[one], {name: reward[one] for name, reward in rewards.items()}


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
