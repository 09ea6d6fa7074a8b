"""Provoke every fault of `tests/faults` through the command line: `python benchmarks/faults.py`, minutes.

Writes results/faults.json and faults.md: exit codes, what is said, what is left, and what comes of doing as it says.
Exits with 1 where a fault did not come to what is expected of it.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
from provenance import provenance, write_result  # noqa: E402

from softdimo.cli.main import CODES  # noqa: E402
from softdimo.files import write_text  # noqa: E402
from tests.faults import programs, storage  # noqa: E402, F401  (they fill CASES)
from tests.faults.bench import CASES, Bench, Case, Result, can_mount  # noqa: E402


def row(case: Case, found: Result) -> dict[str, Any]:
    """One fault in the results."""
    fits = found.code == case.code and re.search(case.says, found.message) and "Traceback (most" not in found.message
    expected = bool(fits) and found.intact and found.recovered is (True if case.recovers else None)
    return {"fault": case.name, "as_expected": expected, **vars(found)}


def page(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "# Faults",
        "",
        f"`python benchmarks/faults.py` provoked these {len(rows)} faults with {about['commands']} `softdimo` commands,"
        " each in a process of its own, on tiny recipes that train all three players (softdimo "
        f"{about['softdimo']} at {about['git']}, {about['seconds']:.0f} seconds), and wrote down what happened; "
        "`tests/faults` checks the same. *Kept*: complete checkpoints, weights and measured rows were to the bit what "
        "they had been, and nothing half-written was left. *Goes on*: once the cause was mended as the message says, "
        "the command led, to the bit, to the weights, averages, critics, optimizer states, streams and log (or table) "
        "of a run without the fault.",
        "",
        CODES,
        "",
        "| fault | exit code | what is said | kept | goes on |",
        "|---|--:|---|---|---|",
    ]
    words = {True: "yes", False: "**no**", None: "–"}
    for r in rows:
        name = f"{r['fault']}, {r['tried']} versions" if r["tried"] > 1 else r["fault"]
        said = r["message"].replace("|", "\\|")
        lines.append(f"| {name} | {r['code']} | {said} | {words[r['intact']]} | {words[r['recovered']]} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Provoke, print, write."""
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, contextlib.closing(Bench(Path(place))) as bench:
        bench.prepare()
        mounts = can_mount(bench.root)
        for case in CASES:
            if case.mounts and not mounts:
                print(f"left out, file systems cannot be mounted here: {case.name}")
                continue
            rows.append(row(case, case.provoke(bench)))
            told = "ok" if rows[-1]["as_expected"] else "NO"
            print(f"{told} {time.monotonic() - began:5.0f} s  {case.name}", flush=True)
    about = provenance() | {"seconds": round(time.monotonic() - began, 1), "commands": len(bench.started)}
    write_result("faults", {"about": about, "faults": rows})
    write_text(HERE / "faults.md", page(rows, about))
    return 0 if all(r["as_expected"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
