"""Keep a finished run's numbers: `python benchmarks/collect.py RUN` copies eval, search and lock file into results/.

`--into imagenet256` (or coco30k, geneval, hpsv2) copies them into that folder of results/, beside the papers' tables
(`papers.py`). With the captions jobs come their pictures (extra `benchmarks`).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from provenance import write_result


def collect(run: Path, into: str = "") -> Path:
    """Write `results/<into>/<run>.json` with everything that the numbers depend on."""
    out = {
        name: json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("lock", "eval", "search", "timing")
        if (run / f"{name}.json").is_file()
    }
    for lock in (out.get("lock", {}), *(out.get(name, {}).get("lock", {}) for name in ("eval", "search"))):
        lock.pop("command", None)  # it may name folders of the machine
    path = write_result(f"{into}/{run.name}" if into else run.name, out)
    if run.name in ("captions_reward", "captions_tteo"):
        import plots

        draw = plots.captions if run.name == "captions_reward" else plots.searches
        draw(out, path.with_suffix(".png"))
    if run.name == "captions_reward":
        shutil.copy(max((run / "samples").glob("*.png")), path.with_name(f"{run.name}_samples.png"))
    return path


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    ask.add_argument("--into", default="", help="folder of results/")
    asked = ask.parse_args()
    for folder in asked.runs:
        print(collect(folder, asked.into))
