"""From an input embedding to what a search optimizes: the student's image, its rewards, their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from softdimo.kinds import Cond, Reward, Teacher, Tokenizer, rated
from softdimo.math.best import best_of
from softdimo.math.soft import Relaxation
from softdimo.shapes import Embedding, Image, PerSample

Decode = Literal["argmax", "soft"]
Generator = Callable[[Embedding, Cond], Image]
Start = Callable[[Cond, torch.Generator], Embedding]
_MEAN, _SD = "score.mean", "score.sd"
"""Names in `Cond.tensors`: mean and standard deviation [B rewards] of each condition's rewards."""


@dataclass(frozen=True)
class Weighted:
    """One reward of a score."""

    name: str
    reward: Reward
    weight: float = 1.0


class Scores:
    """What is optimized: one reward, or the sum over several of weight times reward, in standard deviations.

    R = sum_i w_i (R_i - m_i) / s_i. The paper (arXiv 2509.22925) selects by "a combination of" four rewards and does
    not say which; the sum of z-scores is our choice, as is the source of m_i and s_i: `pool` random starts of the same
    condition, drawn before the search. So they neither depend on other conditions nor change while a start climbs,
    and scores of one condition compare. A reward that is the same for the whole pool has s_i = 1. Without a pool (None)
    R = sum_i w_i R_i, as in ReNO (arXiv 2406.04312).

    With `recompute`, what rewards keep for the backward pass is computed anew there.
    """

    def __init__(self, rewards: Sequence[Weighted], pool: int | None = None, recompute: bool = False) -> None:
        self.rewards, self.recompute = tuple(rewards), recompute
        self.calibration = pool if pool is not None and len(self.rewards) > 1 else 0
        """Random starts, and forward-equivalents, per condition that mean and standard deviation take."""

    @property
    def differentiable(self) -> bool:
        """Whether all of it is."""
        return all(each.reward.differentiable for each in self.rewards)

    @property
    def several(self) -> tuple[str, ...]:
        """Names of the rewards, where there is more than one."""
        return tuple(each.name for each in self.rewards) if len(self.rewards) > 1 else ()

    def __call__(self, img: Image, cond: Cond) -> PerSample:
        """Scores [B] of images of 1 or 3 channels."""
        return self.each(img, cond)[0]

    def each(self, img: Image, cond: Cond) -> tuple[PerSample, Mapping[str, PerSample]]:
        """Scores [B], and those of every reward by itself, not weighted, where there are several."""
        found = [self._rated(each.reward, img, cond) for each in self.rewards]
        total = None
        for i, (each, raw) in enumerate(zip(self.rewards, found, strict=True)):
            value = raw
            if self.calibration:
                value = (raw - cond.tensors[_MEAN][:, i]) / cond.tensors[_SD][:, i]
            value = value if each.weight == 1 else each.weight * value
            total = value if total is None else total + value
        assert total is not None
        return total, dict(zip(self.several, found, strict=True)) if self.several else {}

    def _rated(self, reward: Reward, img: Image, cond: Cond) -> PerSample:
        if not self.recompute or not img.requires_grad:
            return rated(reward, img, cond)
        scores: PerSample = checkpoint(rated, reward, img, cond, use_reentrant=False)
        return scores

    def calibrated(
        self, generator: Generator, start: Start, cond: Cond, rng: torch.Generator, rows: int | None = None
    ) -> Cond:
        """The conditions with mean and standard deviation of their rewards, which `each` needs; as they are without."""
        if not self.calibration:
            return cond
        raw = Scores(self.rewards)
        pool = torch.stack(list(best_of(self.calibration, generator, raw, start, cond, rng, rows).rewards.values()), -1)
        sd = pool.std(0)
        flat = sd <= 1e-6 * pool.abs().mean(0)
        found = {_MEAN: pool.mean(0), _SD: torch.where(flat, torch.ones_like(sd), sd)}
        return replace(cond, tensors={**cond.tensors, **found})

    def statistics(self, cond: Cond) -> Iterator[dict[str, dict[str, float]]]:
        """For each condition the mean and standard deviation that its rewards were measured in; empty without any."""
        for i in range(len(cond) if self.calibration else 0):
            mean, sd = (cond.tensors[key][i].tolist() for key in (_MEAN, _SD))
            yield {name: {"mean": mean[k], "sd": sd[k]} for k, name in enumerate(self.several)}


def decoder(net: Teacher, tokenizer: Tokenizer, decode: Decode, recompute: bool = False) -> Generator:
    """e_in -> image, deterministic. `argmax`: the most probable tokens, straight through where gradients are on.

    With `recompute`, what the tokenizer keeps for the backward pass is computed anew there; the student's pass,
    which is what forward-equivalents count, is not repeated.
    """
    straight = Relaxation(kind="straight_through")

    def decoded(z: Tensor, cond: Cond) -> Image:
        if decode == "soft":
            return tokenizer.decode_soft(z.softmax(-1), cond)
        tokens = z.argmax(-1)
        if not z.requires_grad:
            return tokenizer.decode(tokens, cond)
        return tokenizer.decode_soft(straight(z, tokens, torch.Generator(z.device)), cond)

    def images(e: Embedding, cond: Cond) -> Image:
        z = net(e, cond).logits.float()
        if not recompute or not z.requires_grad:
            return decoded(z, cond)
        img: Any = checkpoint(decoded, z, cond, use_reentrant=False)
        return img  # type: ignore[no-any-return]

    return images


class Looked(NamedTuple):
    """Images and what they are worth, on the CPU."""

    images: Image
    score: PerSample
    """float64."""
    rewards: dict[str, PerSample]
    """Each reward by itself, where the score is made of several."""
    held_out: dict[str, PerSample]
    """Rewards that are only measured."""

    def row(self, i: int) -> dict[str, Any]:
        """The numbers of one image; null for a held-out reward that is not finite."""

        def plain(named: Mapping[str, PerSample]) -> dict[str, float | None]:
            return {name: float(v[i]) if bool(v[i].isfinite()) else None for name, v in named.items()}

        return {"score": float(self.score[i]), "rewards": plain(self.rewards), "held_out": plain(self.held_out)}


@torch.no_grad()
def decoded(generator: Generator, e: Embedding, cond: Cond, rows: int | None = None) -> Image:
    """Images [N C H W] of embeddings [N L D], `rows` at a time."""
    return torch.cat([generator(e[at], cond[at]) for at in _chunks(len(e), rows)])


@torch.no_grad()
def look(images: Image, cond: Cond, score: Scores, held_out: Mapping[str, Reward], rows: int | None = None) -> Looked:
    """All rewards of images [N C H W], `rows` at a time."""
    values, named, watched = [], [], []
    for at in _chunks(len(cond), rows):
        img, to = images[at], cond[at]
        value, rewards = score.each(img, to)
        values.append(value.double().cpu())
        named.append({name: r.double().cpu() for name, r in rewards.items()})
        watched.append({name: rated(reward, img, to).double().cpu() for name, reward in held_out.items()})
    joined = [{name: torch.cat([each[name] for each in kept]) for name in kept[0]} for kept in (named, watched)]
    return Looked(images.cpu(), torch.cat(values), *joined)


def _chunks(n: int, rows: int | None) -> Iterator[slice]:
    step = rows or max(1, n)
    return (slice(first, first + step) for first in range(0, n, step))
