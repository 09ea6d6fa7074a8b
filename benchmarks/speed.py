"""What one iteration of Di[M]O costs, and where: `python benchmarks/speed.py` (`--quick`: tiny sizes, seconds).

1. Network passes per iteration, counted while steps run.
2. A step at the size of MaskGit against `published_loop.py` from the same weights: seconds in turn, peak memory.
3. The phases of that step, and of a step of `recipes/animals_dimo.yaml`.

Weights are random: they do not change what a step costs. Prints tables, writes results/speed.json. Both loops stay in
memory to take turns: 16 GB.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median
from typing import Any

from instruments import Clock, counted, peak_bytes
from lightning_fabric import Fabric
from loops import OURS, PUBLISHED, SHARED, Job, Loop, animals, build, maskgit
from provenance import provenance, write_result

from softdimo.engine.hardware import launch
from softdimo.memory import human, share
from softdimo.recipe.model import Hardware


def in_turn(loops: dict[str, Loop], times: int, batch: int) -> dict[str, dict[str, Any]]:
    """Seconds of every step, and the median seconds of every phase.

    A step of each to warm up, in which passes are counted; then `times` of each in turn, every other round backwards.
    """
    made: dict[str, dict[str, Any]] = {}
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    for name, loop in loops.items():
        with counted(loop.networks, batch) as passes:
            loop.step()
        made[name] = {"passes": sum(passes.values()), "passes_of": dict(passes), "seconds": []}
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


def against_published(job: Job, times: int, fabric: Fabric) -> dict[str, Any]:
    """Parts 1 and 2; peak memory is that of a loop alone, with its networks."""
    names = (PUBLISHED, OURS, SHARED)
    peaks = {name: peak_bytes(partial(_two_steps, job, name, fabric)) for name in names}
    loops = build(job, names, fabric)
    rows = in_turn(loops, times, job.train.batch_size)
    for name in (OURS, SHARED):
        ratios = [a / b for a, b in zip(rows[PUBLISHED]["seconds"], rows[name]["seconds"], strict=True)]
        rows[name]["times_as_fast"] = {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    for name in names:
        rows[name] |= {"peak_bytes": peaks[name], "parameters": _sizes(loops[name])}
    nets, player = loops[OURS].networks, job.train.player
    state = sum(share(n, nets[n], player, "32-true", int(n == "student")).total for n in ("student", "auxiliary"))
    return {
        "teacher": job.teacher.model_dump(include={"width", "depth", "heads"}),
        "tokens": job.tokens._asdict(),
        "classes": job.classes,
        "batch": job.train.batch_size,
        "state_bytes": state + share("teacher", nets["teacher"], None, "32-true").total,
        "loops": rows,
    }


def _sizes(loop: Loop) -> dict[str, int]:
    return {name: sum(p.numel() for p in net.parameters()) for name, net in loop.networks.items()}


def _two_steps(job: Job, name: str, fabric: Fabric) -> None:
    """The second is the first with Adam's moments and the other player's gradients in memory."""
    (loop,) = build(job, (name,), fabric).values()
    for _ in range(2):
        loop.step()


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Phases by loop: milliseconds and their share."""
    print(f"\n{title}")
    print(f"{'':22}" + "".join(f"{name:>22}" for name in rows))
    for what, text in (("passes", "{:.0f}"), ("median", "{:.3f} s")):
        print(f"{what:22}" + "".join(f"{text.format(row[what]):>22}" for row in rows.values()))
    if all("peak_bytes" in row for row in rows.values()):
        print(f"{'peak memory':22}" + "".join(f"{human(row['peak_bytes']):>22}" for row in rows.values()))
    for phase in dict.fromkeys(phase for row in rows.values() for phase in row["phases"]):
        cells = [(row["phases"].get(phase, 0.0), row["median"]) for row in rows.values()]
        print(f"  {phase:20}" + "".join(f"{f'{1000 * t:.1f} ms {t / whole:5.1%}':>22}" for t, whole in cells))
    for name, row in rows.items():
        if "times_as_fast" in row:
            print("{}: {median:.2f} times as fast ({lowest:.2f} to {highest:.2f})".format(name, **row["times_as_fast"]))


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write; returns what is written."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--quick", action="store_true", help="tiny sizes, two steps of each; writes nothing")
    ask.add_argument("--batch", type=int, default=2, help="of the large step")
    ask.add_argument("--times", type=int, default=7, help="large steps of each, in turn")
    asked = ask.parse_args(words)
    quick = asked.quick
    fabric = launch(Hardware(accelerator="cpu"))
    large = against_published(maskgit(quick, asked.batch), 2 if quick else asked.times, fabric)
    show("One step at the size of MaskGit", large["loops"])
    print(f"weights, gradients, Adam's averages and EMA, in all of them: {human(large['state_bytes'])}")
    job = animals()
    name = SHARED if job.train.terms[0].share_t else OURS  # type: ignore[attr-defined]
    small = in_turn(build(job, (name,), fabric), 2 if quick else 40, job.train.batch_size)
    show("One step of recipes/animals_dimo.yaml", small)
    result = {"provenance": provenance(), "maskgit": large, "animals": small}
    if not quick:
        print(f"\n{write_result('speed', result)}")
    return result


if __name__ == "__main__":
    main()
