"""Tune the teacher's samplers: `python benchmarks/guidance.py recipes/animals_softdimo.yaml RUNS`.

Every sampler and step count of the recipe's teacher rows, over guidance scales and ramps (`softdimo.math.guidance`),
and every row of 8 steps over the sampler's own setting, with seeds that the table does not use. Prints the best of
each and writes results/guidance/<recipe>.json; the recipe's rows carry what it prints.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provenance import RESULTS

from softdimo import recipe, run
from softdimo.files import write_json
from softdimo.math.guidance import Guidance
from softdimo.recipe import Loaded
from softdimo.recipe.model import Row

SEEDS, SAMPLES, REFERENCE = (100, 101), 800, 8000
GUIDANCE = [Guidance(scale=2.0), *(Guidance(scale=s, ramp="linear") for s in (2.0, 3.0, 4.0, 5.0, 6.0))]
OWN: dict[str, tuple[str, tuple[Any, ...]]] = {
    "maskgit": ("choice_temperature", (4.5, 8.0, 20.0, 40.0)),
    "halton_confidence": ("choice_temperature", (4.5, 8.0, 20.0, 40.0)),
    "maskbit": ("choice_temperature", (4.5, 8.0, 20.0, 40.0)),
    "halton": ("randomize", (True,)),
    "theta_trapezoidal": ("theta", (0.3, 0.4, 0.6)),
}
"""What a sampler has beside its guidance, and other values than the recipe's."""
OWN_AT = 8
"""Steps at which they are tried."""


def variants(row: Row) -> Iterator[Row]:
    """The row under every guidance (ramps mean nothing for one step), and under its own settings one at a time."""
    sampler = row.sampler
    steps = getattr(sampler, "steps", None)
    if row.of != "teacher" or sampler is None or steps is None:
        return
    changes: list[tuple[str, dict[str, Any]]] = [
        (f"{g.ramp} {g.scale:g}", {"guidance": g}) for g in GUIDANCE if steps > 1 or g.ramp == "constant"
    ]
    if steps == OWN_AT and sampler.use in OWN:
        key, values = OWN[sampler.use]
        changes += [(f"{key} {value}", {key: value}) for value in values if value != getattr(sampler, key)]
    for name, change in changes:
        changed = sampler.model_copy(update=change)
        yield row.model_copy(update={"name": f"{sampler.use} {steps} {name}", "sampler": changed})


def sweep(path: str, smoke: bool = False) -> Loaded:
    """The recipe with the variants of its rows instead of them, and with nothing to train."""
    loaded = recipe.load(path)
    assert loaded.recipe.eval is not None
    rows = [v for row in loaded.recipe.eval.rows for v in variants(row)]
    metrics = [m for m in loaded.recipe.eval.metrics if m.use in ("frechet", "accuracy")]
    written = {
        "rows": [r.model_dump(mode="json", by_alias=True) for r in rows],
        "metrics": [m.model_dump(mode="json", by_alias=True) for m in metrics],
        "samples": SAMPLES,
        "seeds": SEEDS,
        "reference": REFERENCE,
    }
    changes = [f"eval.{key}={json.dumps(value)}" for key, value in written.items()]
    return recipe.load(path, ["train=null", "search=null", *changes], smoke=smoke)


def main(path: str, runs: Path) -> None:
    """Measure, print, write."""
    loaded = sweep(path)
    folder = run.run(loaded, runs / f"{loaded.path.stem}-guidance", resume=True)
    result = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    result["lock"].pop("command", None)  # it may name folders of the machine
    result["rows"] = [r for r in result["rows"] if r["of"] == "teacher"]
    write_json(RESULTS / "guidance" / f"{loaded.path.stem}.json", result)
    best: dict[str, tuple[float, str]] = {}
    for row in result["rows"]:
        key = " ".join(row["name"].split()[:2])
        best[key] = min(best.get(key, (float("inf"), "")), (row["metrics"]["fd"]["value"], row["name"]))
    for value, name in best.values():
        print(f"{value:8.3f}  {name}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
