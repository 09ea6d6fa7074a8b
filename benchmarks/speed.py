"""What one iteration of Di[M]O costs, and where: `python benchmarks/speed.py` (`--quick`: tiny sizes, seconds).

1. Network passes per iteration, counted while steps run.
2. A step at the size of MaskGit against `published_loop.py` from the same weights, in fp32 and in bf16: seconds in
   turn, peak memory, and the part of the machine's rate of matrix products that a step reaches.
3. How that grows with the batch, the number of tokens, and the depth.
4. The phases of those steps, and of a step of `recipes/animals_dimo.yaml`.

Weights are random: they do not change what a step costs. Prints tables, writes results/speed.json. Loops that take
turns are in memory together: 16 GB. Without instructions for bf16 a processor takes minutes for such a step; its rows
are then left out.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import time
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import torch
from instruments import Clock, counted, peak_bytes
from loops import (
    COMPILED16,
    DROPOUT,
    OURS,
    OURS16,
    PUBLISHED,
    PUBLISHED16,
    SHARED,
    SHARED16,
    Job,
    Loop,
    animals,
    build,
    maskgit,
)
from provenance import provenance, write_result
from torch import nn
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode

from softdimo.engine import products
from softdimo.memory.sizes import human, slow_in_bf16

GROWTH: dict[str, dict[str, int]] = {
    "batch 1": {"batch": 1},
    "batch 4": {"batch": 4},
    "64 tokens": {"grid": 8},
    "576 tokens": {"grid": 24},
    "6 layers": {"depth": 6},
    "12 layers": {"depth": 12},
}
"""What differs from the large step."""


def in_turn(loops: dict[str, Loop], times: int, batch: int) -> dict[str, dict[str, Any]]:
    """Seconds of every step, and the median seconds of every phase.

    A step of each to warm up, in which passes and products are counted; then `times` of each in turn, every other round
    backwards.
    """
    made: dict[str, dict[str, Any]] = {}
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    for name, loop in loops.items():
        plain = mock.patch.object(products, "ROWS", 2**62)  # the counter does not know oneDNN's products
        flop = contextlib.nullcontext() if name == COMPILED16 else FlopCounterMode(display=False)
        with plain, counted(loop.networks, batch) as passes, flop as found:
            loop.step()
        loop.step()
        made[name] = {
            "passes": sum(passes.values()),
            "passes_of": dict(passes),
            "flop": found.get_total_flops() if found else 0,
            "seconds": [],
        }
    for i in range(times):
        for name in list(loops)[:: -1 if i % 2 else 1]:
            clock = Clock()
            with clock.watching(loops[name].watched), clock.phase("rest"):
                loops[name].step()
            made[name]["seconds"].append(sum(clock.seconds.values()))
            phases[name].append(dict(clock.seconds))
    for name, row in made.items():
        row["median"] = median(row["seconds"])
        medians = {p: median(s.get(p, 0.0) for s in phases[name]) for p in {p for s in phases[name] for p in s}}
        row["phases"] = dict(sorted(medians.items(), key=lambda item: -item[1]))
    return made


def versus(rows: dict[str, dict[str, Any]], yardstick: str) -> None:
    """Write into each row how many times as fast it is as the yardstick, from pairs of the same round."""
    for name, row in rows.items():
        if name != yardstick:
            ratios = [a / b for a, b in zip(rows[yardstick]["seconds"], row["seconds"], strict=True)]
            row["times_as_fast"] = {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def product_rate(job: Job, dtype: torch.dtype, times: int = 5) -> float:
    """FLOP per second of a block's four matrix products, there and back, at the job's number of rows.

    By the library that is faster on this processor (`softdimo/engine/products.py`).
    """
    one_dnn = dtype == torch.float32 and products.worthwhile()
    product = products.product if one_dnn else linear
    D, hidden = job.teacher.width, job.teacher.mlp  # type: ignore[union-attr]
    rows = job.train.batch_size * (job.tokens.L + 1)
    shapes = ((D, 3 * D), (D, D), (D, hidden), (hidden, D))
    made = [tuple(torch.randn(s, dtype=dtype) for s in ((rows, a), (b, a), (rows, b))) for a, b in shapes]

    def run() -> None:
        for x, w, g in made:
            product(x, w)
            product(g, w.T)
            product(g.T, x.T)

    seconds = []
    with torch.no_grad():
        for _ in range(times + 1):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
    return sum(6 * rows * a * b for a, b in shapes) / min(seconds[1:])


def measured(job: Job, names: tuple[str, ...], times: int) -> dict[str, dict[str, Any]]:
    """Rows of these loops, in turn; the first name is the yardstick."""
    gc.collect()
    loops = build(job, names)
    rows = in_turn(loops, times, job.train.batch_size)
    versus(rows, names[0])
    rate = {torch.float32: product_rate(job, torch.float32), torch.bfloat16: product_rate(job, torch.bfloat16)}
    for name, row in rows.items():
        row["product_rate"] = rate[torch.bfloat16 if "bf16" in name else torch.float32]
        if row["flop"]:
            row["rate"] = row["flop"] / row["median"]
        row["parameters"] = {n: _size(net) for n, net in loops[name].networks.items()}
    return rows


def against_published(job: Job, times: int, quick: bool) -> dict[str, Any]:
    """Parts 1 and 2; peak memory is that of a loop alone, with its networks."""
    parts = ((PUBLISHED, DROPOUT, OURS, SHARED), (PUBLISHED, PUBLISHED16, OURS16, SHARED16), (PUBLISHED, COMPILED16))
    rows: dict[str, dict[str, Any]] = {}
    for names in parts[: 2 if quick else 1 if slow_in_bf16("cpu") else 3]:
        found = measured(job, names, times)
        found.pop(PUBLISHED) if PUBLISHED in rows else None
        rows |= found
    for name, row in rows.items():
        gc.collect()
        if name != COMPILED16:  # whose first step compiles
            row["peak_bytes"] = peak_bytes(partial(_two_steps, job, name))
    return {**_about(job), "loops": rows}


def growth(job: Job, quick: bool, times: int) -> dict[str, Any]:
    """Part 3: seconds of a step and how many times as fast it is, sizes changed one at a time."""
    names = (PUBLISHED, OURS, OURS16) if quick or not slow_in_bf16("cpu") else (PUBLISHED, OURS)
    found: dict[str, Any] = {}
    for what, change in GROWTH.items():
        other = maskgit(quick, **({"batch": job.train.batch_size} | change))
        rows = measured(other, names, times)
        keep = ("median", "times_as_fast", "flop", "rate", "product_rate")
        found[what] = {**_about(other), "loops": {n: {k: r[k] for k in keep if k in r} for n, r in rows.items()}}
        show(what, rows)
    return found


def _about(job: Job) -> dict[str, Any]:
    return {
        "teacher": job.teacher.model_dump(include={"width", "depth", "heads"}),
        "tokens": job.tokens._asdict(),
        "classes": job.classes,
        "batch": job.train.batch_size,
    }


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _two_steps(job: Job, name: str) -> None:
    """The second is the first with Adam's moments in memory."""
    (loop,) = build(job, (name,)).values()
    for _ in range(2):
        loop.step()


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Phases by loop: milliseconds and their share."""
    print(f"\n{title}")
    print(f"{'':22}" + "".join(f"{name:>26}" for name in rows))
    for what, text in (("passes", "{:.0f}"), ("median", "{:.3f} s")):
        print(f"{what:22}" + "".join(f"{text.format(row[what]):>26}" for row in rows.values()))
    if any("peak_bytes" in row for row in rows.values()):
        print(f"{'peak memory':22}" + "".join(f"{human(row.get('peak_bytes', 0)):>26}" for row in rows.values()))
    for phase in dict.fromkeys(phase for row in rows.values() for phase in row["phases"]):
        cells = [(row["phases"].get(phase, 0.0), row["median"]) for row in rows.values()]
        print(f"  {phase:20}" + "".join(f"{f'{1000 * t:.1f} ms {t / whole:5.1%}':>26}" for t, whole in cells))
    for name, row in rows.items():
        if "rate" in row:
            print(f"{name}: {row['rate'] / row['product_rate']:.0%} of {row['product_rate'] / 1e9:.0f} GFLOP/s")
        if "times_as_fast" in row:
            print("{}: {median:.2f} times as fast ({lowest:.2f} to {highest:.2f})".format(name, **row["times_as_fast"]))


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write; returns what is written."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--quick", action="store_true", help="tiny sizes, two steps of each; writes nothing")
    ask.add_argument("--batch", type=int, default=2, help="of the large step")
    ask.add_argument("--times", type=int, default=5, help="large steps of each, in turn (three where sizes change)")
    asked = ask.parse_args(words)
    quick = asked.quick
    job = maskgit(quick, asked.batch)
    large = against_published(job, 2 if quick else asked.times, quick)
    show("One step at the size of MaskGit", large["loops"])
    grown = growth(job, quick, 2 if quick else 3)
    embedded = animals()
    name = SHARED if embedded.train.terms[0].share_t else OURS  # type: ignore[attr-defined]
    small = in_turn(build(embedded, (name,)), 2 if quick else 40, embedded.train.batch_size)
    show("One step of recipes/animals_dimo.yaml", small)
    result = {"provenance": provenance(), "maskgit": large, "growth": grown, "animals": small}
    if not quick:
        print(f"\n{write_result('speed', result)}")
    return result


if __name__ == "__main__":
    main()
