"""Counts, orders and ramps of the public samplers, which need no network."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import torch

from softdimo.kinds import TokenShape
from softdimo.math.guidance import Guidance
from softdimo.math.init import Init
from softdimo.math.schedules import mask_ratio
from softdimo_plugins.samplers.halton import Confidence, Halton, halton_order
from softdimo_plugins.samplers.iterative import Iterative
from softdimo_plugins.samplers.maskbit import MaskBit
from softdimo_plugins.samplers.maskgit import MaskGIT

from .case import Case, Check

Entry = dict[str, Any]


def counts(kind: type[Iterative], schedule: str, steps: int, tokens: int, groups: int = 1) -> list[int]:
    """Units that a sampler commits at each step."""
    net: Any = SimpleNamespace(shape=TokenShape(1, tokens, groups, 2))
    return kind.model_validate({"steps": steps, "schedule": schedule}).counts(net)


def revealed(case: Case, name: str, entry: Entry) -> None:
    """Per step, of MaskGIT."""
    for schedule, by_steps in entry["values"].items():
        for steps, recorded in by_steps.items():
            case.equal(f"{name} {schedule} {steps}", counts(MaskGIT, schedule, int(steps), entry["L"]), recorded)


def committed(case: Case, name: str, entry: Entry) -> None:
    """Cumulative, of the newer sampler by confidence."""
    for schedule, by_steps in entry["values"].items():
        for steps, recorded in by_steps.items():
            ours = list(accumulate(counts(Confidence, schedule, int(steps), entry["L"])))
            case.equal(f"{name} {schedule} {steps}", ours, recorded)


def halton_committed(case: Case, name: str, entry: Entry) -> None:
    """Cumulative, of the Halton sampler."""
    for steps, recorded in entry["values"].items():
        ours = list(accumulate(counts(Halton, "arccos", int(steps), entry["L"])))
        case.equal(f"{name} {steps}", ours, recorded)


def order(case: Case, name: str, entry: Entry) -> None:
    """Cells in the order of the Halton points."""
    grid = entry["grid"]
    case.equal(name, [divmod(i, grid) for i in halton_order(grid, grid)], entry["values"])


def masked(case: Case, name: str, entry: Entry) -> None:
    """At the start of each step, of MaskBit."""
    units, groups = entry["entries"], entry["splits"]
    for schedule, by_steps in entry["values"].items():
        for steps, recorded in by_steps.items():
            committed = counts(MaskBit, schedule, int(steps), entry["L"], groups)
            ours = [units - done for done in accumulate(committed[:-1], initial=0)]
            case.equal(f"{name} {schedule} {steps}", ours, recorded)


def ramp(case: Case, name: str, sampler: Iterative, recorded: list[float]) -> None:
    """How much of the guidance there is at each step, of a sampler whose scale goes from 1 to 2."""
    ours = torch.tensor([sampler.scale(i) - 1 for i in range(sampler.steps)], dtype=torch.float64)
    case.near(name, ours, 1e-9, expected=torch.tensor(recorded, dtype=torch.float64))


def maskgit_ramp(case: Case, name: str, entry: Entry) -> None:
    """Linear."""
    for steps, recorded in entry["values"].items():
        ramp(case, f"{name} {steps}", MaskGIT(steps=int(steps), guidance=Guidance(scale=2, ramp="linear")), recorded)


def maskbit_ramp(case: Case, name: str, entry: Entry) -> None:
    """Cosine, of a power of the progress."""
    for power, by_steps in entry["values"].items():
        for steps, recorded in by_steps.items():
            guidance = Guidance(scale=2, ramp="cosine", power=float(power.removeprefix("p=")))
            ramp(case, f"{name} {power} {steps}", MaskBit(steps=int(steps), guidance=guidance), recorded)


def initial(case: Case, name: str, entry: Entry) -> None:
    """Mask tokens in the student's input."""
    shape = TokenShape(1, entry["L"], 1, 2)
    for ratio, recorded in entry["values"].items():
        x = Init(r_init=float(ratio)).tokens(1, shape, torch.Generator(), "cpu")
        case.equal(f"{name} {ratio}", (x == shape.V).sum(), recorded)


def ratios(case: Case, name: str, entry: Entry) -> None:
    """Mask ratios. Training with v1.0's `square`, r^2 of a uniform r, is no schedule here; its `linear` is 1 - u."""
    r = torch.tensor(entry["r"])
    for schedule, recorded in entry["maskbit_sampling_ratio_clamped"].items():
        ours = mask_ratio(schedule, r).clamp_min(1e-6)
        case.near(f"{name} {schedule}", ours, 1e-6, expected=recorded)
    for schedule, recorded in entry["maskgit_v1"].items():
        if schedule != "square":
            u = 1 - r if schedule == "linear" else r
            case.near(f"{name} v1 {schedule}", mask_ratio(schedule, u), 1e-6, expected=recorded)


ENTRIES: dict[str, Callable[[Case, str, Entry], None]] = {
    "maskgit_tokens_revealed_per_step": revealed,
    "maskgit_cfg_ramp": maskgit_ramp,
    "halton_order": order,
    "halton_revealed_after_step": halton_committed,
    "halton_repo_confidence_cumulative": committed,
    "maskbit_masked_at_step_start": masked,
    "maskbit_guidance_fraction": maskbit_ramp,
    "dimo_student_init_masked_count": initial,
    "mask_ratio_functions": ratios,
}


def check_schedules(case: Case) -> None:
    """Every entry; one that is not known raises ValueError."""
    for name, entry in case.info.items():
        if name.startswith("_"):
            continue
        if name not in ENTRIES:
            raise ValueError(f"no check for the entry {name}")
        ENTRIES[name](case, name, entry)


CHECKS: dict[tuple[str, str], Check] = {("schedules", "model"): check_schedules}
