"""Results: the table of metrics, what it depends on, and quality against network passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from softdimo.report.folder import Folder
from softdimo.report.html import Html, tag
from softdimo.report.sections import part, provenance
from softdimo.report.svg import Series, chart, compared, shared_legend
from softdimo.report.table import Table, html_table, label, lower_is_better

POWERS = [2.0**k for k in range(-1, 12)]
"""Ticks of an axis of network passes."""


def metrics_part(folder: Folder) -> Html | None:
    """Table, provenance, and one chart of quality against network passes per metric."""
    made = Table(folder.evaluation)
    if not made.rows or not made.metrics:
        return None
    order = [made.headline, *(m for m in made.metrics if m != made.headline)]
    found = [c for name in order if (c := _quality(made, name)) is not None]
    notes = list(dict.fromkeys(f"{r.get('name')}: {n}" for r in made.rows for n in r.get("notes") or []))
    notes += dict.fromkeys(_swept(key, values) for r in made.rows for key, values in (r.get("sweep") or {}).items())
    return part(
        "metrics",
        "Metrics",
        f"{made.caption()} Bold: the best generated row, and rows within one standard deviation of it.",
        html_table(folder.evaluation),
        tag("p", tag("small", "; ".join(notes)), class_="hint") if notes else None,
        provenance(folder.evaluation),
        _plots(made, found) if found else None,
        long=True,
    )


def _swept(key: str, values: Sequence[Any]) -> str:
    """What must be said of a best row among those of a sweep."""
    shown = ", ".join(map(str, values))
    return f"{key} was swept ({shown}): whoever quotes the best of these rows chose it by the number that is quoted"


def _plots(made: Table, found: list[Html]) -> list[Html]:
    """The charts under one legend."""
    hint = "Error bars: standard deviation of the seeds' shares. Points of equal cost stand side by side."
    levels = [str(r.get("name", "")) for r in _still(made)]
    legend = shared_legend(_teachers(made, made.headline) + _students(made, made.headline), levels)
    return [
        tag("h3", "Quality against cost"),
        tag("p", hint, class_="hint"),
        legend,
        tag("div", found, class_="charts"),
    ]


def _quality(made: Table, name: str) -> Html | None:
    """Metric against network passes (logarithmic), teachers as lines, students as marks, real data as levels."""
    series = _teachers(made, name) + _students(made, name)
    values = [v for s in series for v in s.y if math.isfinite(v)]
    if not values:
        return None
    levels = [(str(r.get("name", "")), made.value(r, name)) for r in _still(made)]
    wide = min(values) > 0 and max(values) / min(values) > 6
    return chart(
        label(name), series, "network passes per image", log_x=True, log_y=wide and lower_is_better(name),
        levels=levels, x_ticks=POWERS, named=False,
    )  # fmt: skip


def _still(made: Table) -> list[Mapping[str, Any]]:
    """Rows without a network: real images and reconstructions."""
    return made.of("real") + made.of("reconstruction")


def _teachers(made: Table, name: str) -> list[Series]:
    """One line per way of sampling the teacher, its points by cost."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in made.of("teacher"):
        groups.setdefault(str((row.get("sampler") or {}).get("use", "")).replace("_", " "), []).append(row)
    out = []
    for i, (use, rows) in enumerate(groups.items()):
        ordered = sorted(rows, key=_cost)
        values, spreads = ([read(r, name) for r in ordered] for read in (made.value, made.sd))
        title = "teacher" if len(groups) == 1 else f"teacher, {use}"
        out.append(Series(title, [_cost(r) for r in ordered], values, 4, "steps", spreads, dash=i))
    return out


def _students(made: Table, name: str) -> list[Series]:
    return [
        compared(i, str(r.get("name", "")), _cost(r), made.value(r, name), made.sd(r, name), strong=True)
        for i, r in enumerate(made.of("student"))
    ]


def _cost(row: Mapping[str, Any]) -> float:
    return float(row.get("passes") or 1)
