"""Three ablations on the animals job: `python benchmarks/ablations.py RUNS` (`--seeds 3`: three trainings of each).

`recipes/ablation_r_init.yaml`, `ablation_auxiliary.yaml` and `ablation_consistency.yaml` are run in RUNS (their
students are made once and cached); for the first and the last, gradients are compared too (`consistency.py`). For the
second, iterations are timed, all variants in turns. Writes results/ablations.json and results/ablations.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, provenance, write_result

from softdimo import recipe, run
from softdimo.build import Components
from softdimo.engine.algorithm import Distillation
from softdimo.engine.train import Training
from softdimo.files import load_strict, read_weights
from softdimo.recipe import Loaded
from softdimo.spec import RecipeRef

sys.path.insert(0, str(Path(__file__).parent))
from consistency import agreements

ROOT = Path(__file__).parent.parent
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
IMAGES = 512
TURNS, ITERATIONS = 5, 3
SEED = ", training seed "


@dataclass(frozen=True)
class Work:
    """Where, how many trainings of each student, and whether all is tiny."""

    runs: Path
    seeds: int = 1
    quick: bool = False

    def load(self, name: str) -> Loaded:
        """The ablation's recipe, with a row for every training seed; the first trains as the recipes say."""
        path = ROOT / "recipes" / f"ablation_{name}.yaml"
        loaded = recipe.load(path)
        assert loaded.recipe.eval is not None
        rows = []
        for row in loaded.recipe.eval.rows:
            rows.append(row)
            if isinstance(row.weights, RecipeRef):
                for seed in range(1, self.seeds):
                    ref = row.weights.model_copy(update={"set": row.weights.set | {"seed": seed}})
                    rows.append(row.model_copy(update={"name": f"{row.name}{SEED}{seed}", "weights": ref}))
        written = json.dumps([row.model_dump(mode="json", by_alias=True) for row in rows])
        return recipe.load(path, [f"eval.rows={written}"], smoke=self.quick)


def students(loaded: Loaded) -> Iterator[tuple[str, RecipeRef]]:
    """Names and recipes of the table's students."""
    assert loaded.recipe.eval is not None
    for row in loaded.recipe.eval.rows:
        if isinstance(row.weights, RecipeRef):
            yield row.name, row.weights


def measured(name: str, work: Work) -> dict[str, Any]:
    """Run the ablation's recipe, or go on with it; its rows, real images left out."""
    loaded = work.load(name)
    folder = run.run(loaded, work.runs / f"ablation_{name}", resume=True)
    table = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table["rows"]:
        if row["name"] in dict(students(loaded)):
            found.setdefault(row["name"].split(SEED)[0], []).append(row["metrics"])
    return {
        "samples": table["samples"],
        "seeds": table["seeds"],
        "training_seeds": list(range(work.seeds)),
        "evaluator": table["evaluator_hash"],
        "rows": [{"name": name} | over_seeds(trainings) for name, trainings in found.items()],
    }


def over_seeds(trainings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of every metric over trainings; of a single one, the spread over sampling seeds."""
    if len(trainings) == 1:
        return {k: {"value": m["value"], "sd": m["sd"]} for k, m in trainings[0].items()}
    values = {k: [t[k]["value"] for t in trainings] for k in trainings[0]}
    return {k: {"value": statistics.fmean(v), "sd": statistics.stdev(v), "values": v} for k, v in values.items()}


def gradients(work: Work) -> list[dict[str, Any]]:
    """Distance and cosine at every mask ratio for the students of two ablations, at the end of their trainings."""
    found: dict[str, dict[str, Any]] = {}
    for ablation in ("r_init", "consistency"):
        for name, ref in students(work.load(ablation)):
            made = recipe.load_ref(ref, work.quick)
            row = {"ablation": ablation, "r_init": made.recipe.init.r_init, "trainings": []}
            at = compared(made, work)
            found.setdefault(name.split(SEED)[0], row)["trainings"].append(at)
            print(name, " ".join(f"{a['ratio']:g}:{a['cosine']:.3f}" for a in at), flush=True)
    return [
        {"name": name, "ablation": row["ablation"], "r_init": row["r_init"], "at": _mean(row["trainings"])}
        for name, row in found.items()
    ]


def compared(made: Loaded, work: Work) -> list[dict[str, float]]:
    """What `agreements` finds for one trained student."""
    session = run.start_session(made, work.runs)
    folder, parts = session.ensure(made), session.parts(made)
    assert made.recipe.train is not None
    term: Any = made.recipe.train.terms[0]
    student, psi = parts.context().copy_teacher().eval(), parts.context().copy_teacher().eval()
    load_strict(student, read_weights(folder / "live.safetensors"), folder)
    load_strict(psi, read_weights(folder / "critics" / "dimo.safetensors"), folder)
    found = agreements(
        student, psi, parts.require_teacher(), parts.data.conditions(8 if work.quick else IMAGES), made.recipe.init,
        term.guidance, made.recipe.schedule, RATIOS, torch.Generator().manual_seed(0),
    )  # fmt: skip
    return [asdict(a) for a in found]


def _mean(trainings: list[list[dict[str, float]]]) -> list[dict[str, Any]]:
    """At every ratio the means over trainings, and how far the cosine spreads (None for one)."""
    out = []
    for at in zip(*trainings, strict=True):
        cosines = [a["cosine"] for a in at]
        sd = statistics.stdev(cosines) if len(at) > 1 else None
        out.append({k: statistics.fmean(a[k] for a in at) for k in at[0]} | {"cosine_sd": sd})
    return out


def costs(work: Work) -> dict[str, dict[str, float]]:
    """Milliseconds an iteration (median of turns taken in rotation, one thread) and bytes of state of each variant."""
    runs, turns = work.runs, 1 if work.quick else TURNS
    torch.set_num_threads(1)
    made: dict[str, tuple[Distillation, Any, list[float]]] = {}
    for name, ref in students(Work(runs, quick=work.quick).load("auxiliary")):
        loaded = recipe.load_ref(ref, work.quick)
        session = run.start_session(loaded, runs)
        parts: Components = session.parts(loaded)
        training = Training(parts, session.fabric, runs / "unused", "", name)
        algorithm = training.algorithm(torch.Generator().manual_seed(0))
        assert isinstance(algorithm, Distillation)
        made[name] = (algorithm, training.stream(), [])
    torch.set_num_threads(1)
    for turn in range(turns + 1):
        for algorithm, stream, seconds in made.values():
            began = time.perf_counter()
            for i in range(ITERATIONS):
                algorithm.step(turn * ITERATIONS + i, next(stream))
            if turn:  # the first warms up
                seconds.append((time.perf_counter() - began) / ITERATIONS)
    return {
        name: {"milliseconds": 1000 * statistics.median(seconds), "state_bytes": _state(algorithm)}
        for name, (algorithm, _, seconds) in made.items()
    }


def _state(algorithm: Distillation) -> int:
    """Bytes of weights, gradients and Adam's averages that training adds to the frozen teacher."""
    players = [algorithm.generator, *(e.critic for e in algorithm.terms if e.critic is not None)]
    teacher = {
        t.data_ptr() for e in algorithm.terms for t in getattr(e.term, "teacher", torch.nn.Module()).parameters()
    }
    total = 0
    for player in players:
        for p in player.raw.parameters():
            own = 0 if p.data_ptr() in teacher else 1
            total += p.nbytes * (own + (3 if p.requires_grad else 0))
    return total


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Run, measure, draw, write; returns what is written."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("runs", type=Path, metavar="RUNS")
    ask.add_argument("--seeds", type=int, default=1, help="trainings of every student, each from a seed of its own")
    ask.add_argument("--quick", action="store_true", help="tiny trainings; writes nothing but in RUNS")
    asked = ask.parse_args(words)
    work = Work(asked.runs, asked.seeds, asked.quick)
    tables = {name: measured(name, work) for name in ("r_init", "auxiliary", "consistency")}
    result = tables | {"gradients": gradients(work), "costs": costs(work), "provenance": provenance()}
    from plots import ablations

    ablations(result, (work.runs if work.quick else RESULTS) / "ablations.png")
    if not work.quick:
        write_result("ablations", result)
    return result


if __name__ == "__main__":
    main()
