"""`softdimo compare`: two runs side by side. Numbers of unlike evaluators are refused, not shown."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from softdimo.errors import CheckpointError
from softdimo.report.folder import Folder
from softdimo.report.scale import number, spread
from softdimo.report.table import Table, label, lower_is_better


@dataclass(frozen=True)
class Delta:
    """One number in both runs."""

    row: str
    metric: str
    a: float
    b: float
    noise: float
    """Standard deviation of b - a: the seeds' (or conditions') deviations of both, added in squares; NaN if unknown."""
    shown: tuple[str, str]
    lower: bool

    @property
    def change(self) -> float:
        """b - a."""
        return self.b - self.a

    @property
    def verdict(self) -> str:
        """`better`, `worse` (b against a), `within noise`, or `?` where the noise is unknown."""
        if self.change == 0:
            return "same"
        if not math.isfinite(self.noise):
            return "?"
        if abs(self.change) <= self.noise:
            return "within noise"
        return "better" if (self.change < 0) == self.lower else "worse"


@dataclass(frozen=True)
class Comparison:
    """How run b differs from run a."""

    settings: list[tuple[str, str, str]] = field(default_factory=list)
    """(dotted path, value in a, value in b) of differing recipe fields."""
    versions: list[tuple[str, str, str]] = field(default_factory=list)
    """The same for the lock files."""
    metrics: list[Delta] = field(default_factory=list)
    search: list[Delta] = field(default_factory=list)
    alone: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    """Rows that only a, and only b, has."""


def compare(a: Path, b: Path, console: Console | None = None) -> Comparison:
    """Print and return how two run folders differ: settings, versions, metrics by row, search by method.

    A change of a metric counts as one when it exceeds the standard deviation of the difference between seeds.

    Raises CheckpointError where one is no run folder, or the two were measured by unlike evaluators: the message says
    which fingerprint differs.
    """
    first, second = _open(a), _open(b)
    found = differences(first, second)
    _print(
        found,
        (_name(first, second), _name(second, first)),
        console or Console(width=None if sys.stdout.isatty() else 120),
    )
    return found


def differences(a: Folder, b: Folder) -> Comparison:
    """The comparison itself, without printing."""
    if a.evaluation and b.evaluation:
        refuse_unlike(a, b)
    rows = ({r["name"] for r in f.evaluation.get("rows", [])} for f in (a, b))
    only_a, only_b = next(rows), next(rows)
    return Comparison(
        settings=_changes(a.recipe, b.recipe),
        versions=_changes(_versions(a), _versions(b)),
        metrics=_metrics(Table(a.evaluation), Table(b.evaluation)),
        search=_search(a, b),
        alone=(sorted(only_a - only_b), sorted(only_b - only_a)) if a.evaluation and b.evaluation else ([], []),
    )


def refuse_unlike(a: Folder, b: Folder) -> None:
    """Raise CheckpointError unless both evaluations come from one evaluator and sample size."""
    left, right = a.evaluation, b.evaluation
    faults = []
    if left.get("evaluator_hash") != right.get("evaluator_hash"):
        changed = _changes(left.get("evaluator", {}), right.get("evaluator", {}))
        faults = [f"{path}: {_cut(x)} in {a.path}, {_cut(y)} in {b.path}" for path, x, y in changed]
        faults = faults or ["the evaluator hash differs, though no fingerprint does; evaluate one of them again"]
    if left.get("samples") != right.get("samples"):
        faults.append(f"samples: {left.get('samples')} in {a.path}, {right.get('samples')} in {b.path}")
    if faults:
        raise CheckpointError(
            "the metrics of these runs cannot be compared, their evaluators differ:\n  "
            + "\n  ".join(faults)
            + "\nevaluate one of them with the other's `eval:` section (softdimo eval), then compare again"
        )


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, value) of every leaf. Items of a list that have names are found by name, not by place."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        names = [str(v.get("name") or v.get("use") or "") for v in value]
        for i, inner in enumerate(value):
            yield from flatten(inner, f"{path}.{names[i] if names[i] and names.count(names[i]) == 1 else i}")
    else:
        yield path, "null" if value is None else str(value)


def _changes(a: Any, b: Any) -> list[tuple[str, str, str]]:
    left, right = dict(flatten(a)), dict(flatten(b))
    paths = [*left, *(p for p in right if p not in left)]
    return [(p, left.get(p, "–"), right.get(p, "–")) for p in paths if left.get(p) != right.get(p)]


def _metrics(a: Table, b: Table) -> list[Delta]:
    others = {r["name"]: r for r in b.rows}
    out = []
    for row in a.rows:
        other = others.get(row["name"])
        for name in a.metrics if other is not None else ():
            assert other is not None
            x, y = a.value(row, name), b.value(other, name)
            if math.isfinite(x) and math.isfinite(y):
                noise = math.hypot(a.sd(row, name), b.sd(other, name))
                shown = (a.cell(row, name), b.cell(other, name))
                out.append(Delta(row["name"], name, x, y, noise, shown, lower_is_better(name)))
    return out


def _search(a: Folder, b: Folder) -> list[Delta]:
    others = {m["name"]: m for m in b.search.get("methods", [])}
    out = []
    for m in a.search.get("methods", []):
        if (other := others.get(m["name"])) is None:
            continue
        sems = [float(r["score_sem"]) if r.get("score_sem") is not None else math.nan for r in (m, other)]
        means = [float(r["score_mean"]) for r in (m, other)]
        shown = (spread(means[0], sems[0]), spread(means[1], sems[1]))
        out.append(Delta(m["name"], "score", means[0], means[1], math.hypot(*sems), shown, lower=False))
    return out


def _versions(folder: Folder) -> dict[str, Any]:
    lock = folder.lock
    return {k: lock[k] for k in ("softdimo", "python", "platform", "git", "distributions") if k in lock}


def _open(path: Path) -> Folder:
    if not (Path(path) / "recipe.yaml").is_file():
        raise CheckpointError(
            f"{path} is not a run folder (it has no recipe.yaml); give the folder that `softdimo run` wrote"
        )
    return Folder(Path(path))


def _name(folder: Folder, other: Folder) -> str:
    return folder.path.name if folder.path.name != other.path.name else str(folder.path)


def _cut(text: str, most: int = 44) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _print(found: Comparison, names: tuple[str, str], console: Console) -> None:
    def show(title: str, heads: tuple[str, ...], rows: list[tuple[str | Text, ...]]) -> None:
        if rows:
            made = RichTable(*heads, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
            for row in rows:
                made.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
            console.print(made)
            console.print()

    show("Settings", ("", *names), [(p, _cut(x), _cut(y)) for p, x, y in found.settings])
    show("Versions", ("", *names), [(p, _cut(x), _cut(y)) for p, x, y in found.versions])
    deltas = ("", "metric", *names, "change", "")
    show("Metrics, ± standard deviation of the seeds' shares", deltas, [_cells(d) for d in found.metrics if d.change])
    show("Search, mean ± standard error", deltas, [_cells(d) for d in found.search if d.change])
    if same := sum(not d.change for d in found.metrics + found.search):
        console.print(f"{same} of {len(found.metrics + found.search)} numbers are the same in both.")
    for name, rows in zip(names, found.alone, strict=True):
        if rows:
            console.print(Text(f"only in {name}: {', '.join(rows)}"))
    if not (found.settings or found.versions or found.metrics or found.search):
        console.print("The runs do not differ in settings or versions, and share no measured row.")


def _cells(d: Delta) -> tuple[str | Text, ...]:
    style = {"better": "green", "worse": "red"}.get(d.verdict, "dim")
    change = number(d.change) if d.change < 0 else f"+{number(d.change)}"
    metric = label(d.metric) if d.metric != "score" else "score ↑"
    return d.row, metric, *d.shown, change, Text(d.verdict, style=style)
