"""Mask schedules: which fraction of the units is masked, and how many tokens a sampler commits per step.

| name    | mask ratio r(u) | its inverse u(r) | E[r], u uniform |
|---------|-----------------|------------------|-----------------|
| arccos  | 2/pi arccos u   | cos(pi r / 2)    | 0.637           |
| cosine  | cos(pi u / 2)   | 2/pi arccos r    | 0.637           |
| linear  | 1 - u           | 1 - r            | 0.5             |
| square  | 1 - u^2         | sqrt(1 - r)      | 0.667           |
| root    | 1 - sqrt(u)     | (1 - r)^2        | 0.333           |
| uniform | 1 - u           | 1 - r            | 0.5             |

u is the progress of unmasking: r(0) = 1, r(1) = 0. In training u is uniform in [0, 1]; Di[M]O uses arccos for MaskGIT
and cosine for Meissonic. `uniform` differs from `linear` in `reveal_counts` only, where it commits equal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from softdimo.errors import RecipeError

Schedule = Literal["arccos", "cosine", "linear", "square", "root", "uniform"]

_QUARTER = math.pi / 2
_RATIO: dict[str, Callable[[Tensor], Tensor]] = {
    "arccos": lambda u: u.arccos() / _QUARTER,
    "cosine": lambda u: (u * _QUARTER).cos().clamp_min(0),
    "linear": lambda u: 1 - u,
    "square": lambda u: 1 - u.square(),
    "root": lambda u: 1 - u.sqrt(),
    "uniform": lambda u: 1 - u,
}
_INVERSE: dict[str, Callable[[Tensor], Tensor]] = {
    "arccos": _RATIO["cosine"],
    "cosine": _RATIO["arccos"],
    "linear": _RATIO["linear"],
    "square": lambda r: (1 - r).sqrt(),
    "root": lambda r: (1 - r).square(),
    "uniform": _RATIO["uniform"],
}


def mask_ratio(name: Schedule, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Fraction of masked units at progress u in [0, 1] (values outside are clamped): 1 at u=0, 0 at u=1."""
    return _of(name, _RATIO)(u.clamp(0, 1))


def progress_at(name: Schedule, ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Inverse of `mask_ratio`: the progress u in [0, 1] at which a fraction `ratio` is still masked."""
    return _of(name, _INVERSE)(ratio.clamp(0, 1))


def sample_ratio(name: Schedule, n: int, rng: torch.Generator, device: torch.device | str) -> Float[Tensor, "n"]:
    """Mask ratios of n training samples, r(u) with u uniform in [0, 1). Drawn on the generator's device."""
    return mask_ratio(name, torch.rand(n, generator=rng, device=rng.device).to(device))


def reveal_counts(name: Schedule, steps: int, units: int) -> list[int]:
    """Units that a sampler commits at steps 0..steps-1: each at least 1, `units` in all.

    As in the PyTorch reproduction of MaskGIT: n_i = round(units v_i / sum v), v_i = r(1 - i / (steps - 1)), in float32
    with halves to even; zeros become 1 and the last step takes the rest. One step commits everything. Where the minimum
    of 1 would leave the last step nothing, the largest counts give up the surplus, one by one. `uniform` commits equal
    numbers, to within one.

    Raises:
        RecipeError: steps < 1, or more steps than units.
    """
    _check_steps(steps, units)
    if steps == 1:
        return [units]
    if name == "uniform":
        return [units * (i + 1) // steps - units * i // steps for i in range(steps)]
    v = mask_ratio(name, torch.linspace(1, 0, steps))
    counts = [max(1, int(n)) for n in (v / v.sum() * units).round().tolist()]
    rest = units - sum(counts)
    if counts[-1] + rest >= 1:
        counts[-1] += rest
        return counts
    for _ in range(-rest):
        counts[counts.index(max(counts))] -= 1
    return counts


def masked_counts(name: Schedule, steps: int, units: int) -> list[int]:
    """Units still masked at the start of steps 0..steps-1, as MaskBit counts: floor(units r(i / steps)) in float32.

    Every step commits at least one unit and leaves at least one to the next.

    Raises:
        RecipeError: steps < 1, or more steps than units.
    """
    _check_steps(steps, units)
    ratio = mask_ratio(name, torch.tensor([i / steps for i in range(steps)]))
    counts = [units]
    for i, n in enumerate((ratio * units).floor().tolist()[1:], start=1):
        counts.append(min(max(int(n), steps - i), counts[-1] - 1))
    return counts


def committed_counts(name: Schedule, progress: Sequence[float], units: int) -> list[int]:
    """Units committed after each step i, as the newer PyTorch MaskGIT counts: max(i + 1, floor(units (1 - r(u_i)))).

    `progress` holds u_i in [0, 1], one per step: i / (steps - 1) in its sampler by confidence, (i + 1) / steps in its
    Halton sampler. In float64; the last step commits the rest. A step may commit none where the schedule is concave.

    Raises:
        RecipeError: no steps, or more steps than units.
    """
    _check_steps(len(progress), units)
    shown = (1 - mask_ratio(name, torch.tensor(progress, dtype=torch.float64))) * units
    counts = [max(i + 1, int(n)) for i, n in enumerate(shown.floor().tolist())]
    return [*counts[:-1], units]


def _check_steps(steps: int, units: int) -> None:
    if not 1 <= steps <= units:
        raise RecipeError(
            f"{steps} sampling steps for {units} maskable units: every step commits at least one unit; "
            f"choose between 1 and {units} steps"
        )


def _of(name: str, table: dict[str, Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    if name not in table:
        raise RecipeError(f"unknown mask schedule '{name}'; choose one of {', '.join(get_args(Schedule))}")
    return table[name]
