"""Results: the table of metrics, what it depends on, and quality against network passes."""

from __future__ import annotations

import math
from collections.abc import Mapping
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


def _plots(made: Table, found: list[Html]) -> list[Html]:
    """The charts under one legend."""
    teacher = _teacher(made, made.headline)
    named = ([teacher] if teacher else []) + _students(made, made.headline)
    hint = "Error bars: standard deviation of the seeds' shares. Points of equal cost stand side by side."
    legend = shared_legend(named, [str(r.get("name", "")) for r in _still(made)])
    return [
        tag("h3", "Quality against cost"),
        tag("p", hint, class_="hint"),
        legend,
        tag("div", found, class_="charts"),
    ]


def _quality(made: Table, name: str) -> Html | None:
    """Metric against network passes (logarithmic), teacher as a line, students as marks, real data as levels."""
    teacher, students = _teacher(made, name), _students(made, name)
    series = ([teacher] if teacher else []) + students
    means = [v for s in series for v in s.y if math.isfinite(v)]
    if not means:
        return None
    levels = [(str(r.get("name", "")), made.value(r, name)) for r in _still(made)]
    wide = min(means) > 0 and max(means) / min(means) > 6
    return chart(
        label(name), series, "network passes per image", log_x=True, log_y=wide and lower_is_better(name),
        levels=levels, x_ticks=POWERS, named=False,
    )  # fmt: skip


def _still(made: Table) -> list[Mapping[str, Any]]:
    """Rows without a network: real images and reconstructions."""
    return made.of("real") + made.of("reconstruction")


def _teacher(made: Table, name: str) -> Series | None:
    rows = sorted(made.of("teacher"), key=_cost)
    if not rows:
        return None
    return Series(
        "teacher",
        [_cost(r) for r in rows],
        [made.value(r, name) for r in rows],
        4,
        "steps",
        [made.sd(r, name) for r in rows],
    )


def _students(made: Table, name: str) -> list[Series]:
    return [
        compared(i, str(r.get("name", "")), _cost(r), made.value(r, name), made.sd(r, name), strong=True)
        for i, r in enumerate(made.of("student"))
    ]


def _cost(row: Mapping[str, Any]) -> float:
    return float(row.get("passes") or 1)
