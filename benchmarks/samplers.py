"""Samplers of several steps on the teacher of the animals job: `python benchmarks/samplers.py RUNS`.

Runs `recipes/animals_samplers.yaml` in RUNS (networks are made once and cached). Its rows carry what
`python benchmarks/guidance.py recipes/animals_samplers.yaml RUNS` found, with other seeds. Writes
results/samplers.json and results/samplers.png.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from provenance import RESULTS, provenance, write_result

from softdimo import recipe, run

NAME = "animals_samplers"
ROOT = Path(__file__).parent.parent


def collected(folder: Path) -> dict[str, Any]:
    """The table of a finished run, every row with its sampler's settings."""
    table: dict[str, Any] = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    table["lock"].pop("command", None)  # it may name folders of the machine
    made = recipe.load(folder).recipe.eval
    assert made is not None
    samplers = {row.name: row.sampler.model_dump(mode="json") for row in made.rows if row.sampler is not None}
    rows = [row | {"sampler": samplers.get(row["name"])} for row in table["rows"]]
    return {"eval": table | {"rows": rows}, "provenance": provenance()}


def main(runs: Path) -> None:
    """Run, collect, draw."""
    folder = run.run(recipe.load(ROOT / "recipes" / f"{NAME}.yaml"), runs / NAME, resume=True)
    result = collected(folder)
    write_result("samplers", result)
    from plots import samplers

    print(samplers(result, RESULTS / "samplers.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
