"""Keep a finished run's numbers: `python benchmarks/collect.py RUN` copies eval, search and lock file into results/."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from provenance import write_result


def collect(run: Path) -> Path:
    """Write `results/<run>.json` with everything that the numbers depend on."""
    out = {
        name: json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("lock", "eval", "search", "timing")
        if (run / f"{name}.json").is_file()
    }
    for lock in (out.get("lock", {}), *(out.get(name, {}).get("lock", {}) for name in ("eval", "search"))):
        lock.pop("command", None)  # it may name folders of the machine
    return write_result(run.name, out)


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(collect(Path(folder)))
