"""Tune the teacher's guidance: `python benchmarks/guidance.py recipes/animals_softdimo.yaml RUNS`.

Every sampler and step count of the recipe's teacher rows, over guidance scales and ramps, with seeds that the table
does not use. Prints the best of each and writes results/guidance/<recipe>.json; the recipe's rows carry what it prints.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from softdimo import measure, recipe
from softdimo.math.guidance import Guidance
from softdimo.recipe.model import Row
from softdimo.run import start_session

SEEDS, SAMPLES = (100, 101), 1500
GUIDANCE = [Guidance(scale=s) for s in (1.5, 2.0, 3.0)] + [Guidance(scale=s, ramp="linear") for s in (2.0, 3.0, 4.0)]


def variants(row: Row) -> list[Row]:
    """The row under every guidance; ramps mean nothing for one step."""
    sampler = row.sampler
    steps = getattr(sampler, "steps", None)
    if row.of != "teacher" or sampler is None or steps is None:
        return []
    out = []
    for g in GUIDANCE:
        if steps > 1 or g.ramp == "constant":
            guided = sampler.model_copy(update={"guidance": g})
            out.append(
                row.model_copy(update={"name": f"{sampler.use} {steps} {g.ramp} {g.scale:g}", "sampler": guided})
            )
    return out


def main(path: str, runs: Path) -> None:
    """Measure, print, write."""
    loaded = recipe.load(path)
    assert loaded.recipe.eval is not None
    rows = tuple(v for row in loaded.recipe.eval.rows for v in variants(row))
    metrics = tuple(m for m in loaded.recipe.eval.metrics if m.use in ("frechet", "accuracy"))
    table = loaded.recipe.eval.model_copy(
        update={"rows": rows, "samples": SAMPLES, "seeds": SEEDS, "metrics": metrics, "reference": 8000}
    )
    session = start_session(loaded, runs)
    parts = session.parts(loaded)
    parts.recipe = loaded.recipe.model_copy(update={"eval": table})
    out = Path(__file__).parent / "results" / "guidance" / f"{loaded.path.stem}.json"
    measure.evaluate_section(loaded, out.parent, parts, print, path=out)
    best: dict[str, tuple[float, str]] = {}
    for row in json.loads(out.read_text(encoding="utf-8"))["rows"]:
        key = " ".join(row["name"].split()[:2])
        best[key] = min(best.get(key, (float("inf"), "")), (row["metrics"]["fd"]["value"], row["name"]))
    for value, name in best.values():
        print(f"{value:8.3f}  {name}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
