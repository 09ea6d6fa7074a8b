"""Write the README's results from benchmarks/results: `python benchmarks/readme.py` (`--check` only compares)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from softdimo.report.table import markdown_table

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def section(path: Path) -> str:
    """One run: its command, its table, its search."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    lock, evaluation = result["lock"], result["eval"]
    lines = [f"`softdimo run recipes/{path.stem}.yaml`"]
    if "timing" in result:
        lines[0] += f", {result['timing']['seconds'] / 60:.1f} minutes on {lock['cpus']} cores"
    lines[0] += (
        f" (softdimo {lock['softdimo']} at {lock['git']}, torch {lock['distributions']['torch']}). "
        f"{evaluation['samples']} images a row; ± is the standard deviation of the {len(evaluation['seeds'])} sampling "
        f"seeds' own values. Evaluator {evaluation['evaluator_hash'][:12]}: its feature network and judge took no part "
        "in training."
    )
    lines += ["", markdown_table(evaluation), ""]
    lines.append(
        "`real halves` is the floor: disjoint halves of the training images against each other, all there are. The "
        "accuracy of the real rows is that of the judge itself. The teacher's guidance was swept for the random order "
        "by `benchmarks/guidance.py`."
    )
    lines.append("")
    if "search" in result:
        lines += [
            f"Test-time search with the student, {result['search']['conditions']} conditions:",
            "",
            "| method | forward-equivalents | optimized reward | held-out reward |",
            "|---|---|---|---|",
        ]
        for method in result["search"]["methods"]:
            held_out = ", ".join(f"{name} {value:.4f}" for name, value in method["held_out"].items())
            sem = f" ± {method['score_sem']:.4f}" if method["score_sem"] is not None else ""
            lines.append(f"| {method['name']} | {method['passes']:g} | {method['score_mean']:.4f}{sem} | {held_out} |")
        lines.append("")
    return "\n".join(lines)


def rewritten(readme: str) -> str:
    """The README with its results block made anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = "\n".join(section(p) for p in sorted((ROOT / "benchmarks" / "results").glob("*.json")))
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


if __name__ == "__main__":
    target = ROOT / "README.md"
    text = target.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(0 if text == rewritten(text) else "README.md is stale: run `python benchmarks/readme.py`")
    target.write_text(rewritten(text), encoding="utf-8")
