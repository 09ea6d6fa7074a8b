"""Keep a finished run's numbers: `python benchmarks/collect.py RUN` copies eval, search and lock file into results/."""

from __future__ import annotations

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def collect(run: Path) -> Path:
    """Write `results/<run>.json` with everything that the numbers depend on."""
    out = {
        name: json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("lock", "eval", "search", "timing")
        if (run / f"{name}.json").is_file()
    }
    for lock in (out.get("lock", {}), *(out.get(name, {}).get("lock", {}) for name in ("eval", "search"))):
        lock.pop("command", None)  # it may name folders of the machine
    target = RESULTS / f"{run.name}.json"
    target.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    return target


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(collect(Path(folder)))
