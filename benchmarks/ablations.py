"""Three ablations on the animals job: `python benchmarks/ablations.py RUNS`.

`recipes/ablation_r_init.yaml`, `ablation_auxiliary.yaml` and `ablation_consistency.yaml` are run in RUNS (their
students are made once and cached); for the last, gradients are compared too (`consistency.py`). For the second,
iterations are timed, all variants in turns. Writes results/ablations.json and results/ablations.png.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from provenance import provenance, write_result

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


def students(loaded: Loaded) -> Iterator[tuple[str, RecipeRef]]:
    """Names and recipes of the table's students."""
    assert loaded.recipe.eval is not None
    for row in loaded.recipe.eval.rows:
        if isinstance(row.weights, RecipeRef):
            yield row.name, row.weights


def measured(name: str, runs: Path) -> dict[str, Any]:
    """Run the ablation's recipe, or go on with it; its rows, real images left out."""
    loaded = recipe.load(ROOT / "recipes" / f"ablation_{name}.yaml")
    folder = run.run(loaded, runs / f"ablation_{name}", resume=True)
    table = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    names = {name for name, _ in students(loaded)}
    return {"samples": table["samples"], "seeds": table["seeds"], "evaluator": table["evaluator_hash"]} | {
        "rows": [
            {"name": r["name"]} | {k: {"value": m["value"], "sd": m["sd"]} for k, m in r["metrics"].items()}
            for r in table["rows"]
            if r["name"] in names
        ]
    }


def gradients(runs: Path) -> list[dict[str, Any]]:
    """Cosine and distance for the students of `ablation_r_init` and of all mask ratios, at the end of training."""
    out = []
    for name, ref in students(recipe.load(ROOT / "recipes" / "ablation_r_init.yaml")):
        made = recipe.load_ref(ref)
        session = run.start_session(made, runs)
        folder, parts = session.ensure(made), session.parts(made)
        assert made.recipe.train is not None
        term: Any = made.recipe.train.terms[0]
        student, psi = parts.context().copy_teacher().eval(), parts.context().copy_teacher().eval()
        load_strict(student, read_weights(folder / "live.safetensors"), folder)
        load_strict(psi, read_weights(folder / "critics" / "dimo.safetensors"), folder)
        found = agreements(
            student, psi, parts.require_teacher(), parts.data.conditions(IMAGES), made.recipe.init, term.guidance,
            made.recipe.schedule, RATIOS, torch.Generator().manual_seed(0),
        )  # fmt: skip
        out.append({"name": name, "r_init": made.recipe.init.r_init, "at": [asdict(a) for a in found]})
        print(name, " ".join(f"{a.ratio:g}:{a.cosine:.3f}" for a in found), flush=True)
    return out


def costs(runs: Path) -> dict[str, dict[str, float]]:
    """Milliseconds an iteration (median of turns taken in rotation, one thread) and bytes of state of each variant."""
    torch.set_num_threads(1)
    made: dict[str, tuple[Distillation, Any, list[float]]] = {}
    for name, ref in students(recipe.load(ROOT / "recipes" / "ablation_auxiliary.yaml")):
        loaded = recipe.load_ref(ref)
        session = run.start_session(loaded, runs)
        parts: Components = session.parts(loaded)
        training = Training(parts, session.fabric, runs / "unused", "", name)
        algorithm = training.algorithm(torch.Generator().manual_seed(0))
        assert isinstance(algorithm, Distillation)
        made[name] = (algorithm, training.stream(), [])
    torch.set_num_threads(1)
    for turn in range(TURNS + 1):
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


def main(runs: Path) -> None:
    """Run, measure, draw, write."""
    tables = {name: measured(name, runs) for name in ("r_init", "auxiliary", "consistency")}
    result = tables | {"gradients": gradients(runs), "costs": costs(runs), "provenance": provenance()}
    write_result("ablations", result)
    from plots import ablations

    ablations(result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
