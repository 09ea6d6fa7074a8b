"""Test-time search in the report: methods side by side, score against cost, pictures of the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from softdimo.report.folder import Folder
from softdimo.report.html import Html, details, table, tag
from softdimo.report.results import POWERS
from softdimo.report.scale import number, spread
from softdimo.report.sections import part, picture
from softdimo.report.svg import chart, compared, shared_legend

_X_LABEL = "forward-equivalents per condition"


def search_part(folder: Folder) -> Html | None:
    """Methods side by side: score and held-out scores against forward-equivalents, and best-so-far traces."""
    methods = [m for m in folder.search.get("methods") or [] if isinstance(m, dict)]
    if not methods:
        return None
    held = list(dict.fromkeys(k for m in methods for k in m.get("held_out") or {}))
    several = list(dict.fromkeys(k for m in methods for k in m.get("rewards") or {}))
    gains = any(m.get("gain_mean") is not None for m in methods)
    rows = []
    for m in methods:
        score = _spread(m.get("score_mean"), m.get("score_sem"))
        gain = [_spread(m.get("gain_mean"), m.get("gain_sem"))] if gains else []
        named = [(m.get("rewards") or {}, k) for k in several] + [(m.get("held_out") or {}, k) for k in held]
        rest = [number(float(values[k])) if k in values else "–" for values, k in named]
        seconds = number(float(m["seconds"])) if m.get("seconds") is not None else "–"
        rows.append(("", [m.get("name", ""), f"{float(m.get('passes', 0)):g}", score, *gain, *rest, seconds]))
    heads = [
        "",
        "forward-equivalents",
        "score",
        *(["gain, paired"] if gains else []),
        *several,
        *(f"{k} (held out)" for k in held),
        "seconds",
    ]
    n = folder.search.get("conditions", "?")
    return part(
        "search",
        "Test-time search",
        f"The student's input embedding is searched with its weights fixed, for {n} conditions. A forward counts 1, "
        "its backward 2. Held-out rewards were never optimized." + _calibration(methods),
        table(heads, rows, "Search methods"),
        _paired(methods),
        tag("h3", "Score against cost"),
        shared_legend([compared(i, _method(m), 0.0, 0.0) for i, m in enumerate(methods)]),
        tag("div", _costs(methods, held), _traces(methods), class_="charts"),
        _pictures(folder),
        long=True,
    )


def _paired(methods: Sequence[Mapping[str, Any]]) -> Html | None:
    """Each method with iterations condition by condition beside best-of-N at its cost."""
    rows = []
    for m in methods:
        against = m.get("against") or {}
        watched = {f"{key} (held out)": found for key, found in (against.get("held_out") or {}).items()}
        for what, found in ({"score": against["score"], **watched} if against else {}).items():
            rival = f"{m.get('name', '')} against {against.get('name', '')}"
            cells = [
                rival,
                what,
                _spread(found["mean"], found["sem"]),
                f"{int(found['higher'])}",
                f"{int(found['lower'])}",
            ]
            rows.append(("", cells))
    heads = ["at equal cost", "", "paired difference", "conditions higher", "lower"]
    return table(heads, rows, "Paired with best of N at equal cost") if rows else None


def _calibration(methods: Sequence[Mapping[str, Any]]) -> str:
    """Where the units of several rewards come from, and that they cost something."""
    passes = max((float(m.get("calibration") or 0) for m in methods), default=0)
    told = " The score is a weighted sum of rewards, each in standard deviations from its mean over "
    return f"{told}{passes:g} random starts of the same condition, which every search has paid for." if passes else ""


def _costs(methods: Sequence[Mapping[str, Any]], held: Sequence[str]) -> list[Html]:
    """One chart for the score, one per held-out reward: their scales differ."""

    def plot(
        title: str, note: str, value: Callable[[Mapping[str, Any]], Any], bar: Callable[[Mapping[str, Any]], Any]
    ) -> Html:
        series = [
            compared(i, _method(m), float(m.get("passes") or 1), _finite(value(m)), _finite(bar(m)))
            for i, m in enumerate(methods)
        ]
        return chart(title, series, _X_LABEL, log_x=True, x_ticks=POWERS, note=note, named=False)

    out = [
        plot(
            "Score",
            "what the search optimizes; bars: standard error",
            lambda m: m.get("score_mean"),
            lambda m: m.get("score_sem"),
        )
    ]
    for key in held:
        out.append(
            plot(
                f"{key} (held out)",
                "never optimized",
                lambda m, key=key: (m.get("held_out") or {}).get(key),  # type: ignore[misc]
                lambda m, key=key: (m.get("held_out_sem") or {}).get(key),  # type: ignore[misc]
            )
        )
    return out


def _finite(value: Any) -> float:
    return math.nan if value is None else float(value)


def _spread(mean: Any, sem: Any) -> Html:
    """Mean with its standard error, where there are such."""
    if mean is None:
        return tag("span", "–")
    told, _, bar = spread(float(mean), float(sem or 0)).partition(" ± ")
    return tag("span", told, tag("small", f"± {bar}") if bar else None)


def _method(m: Mapping[str, Any]) -> str:
    return str(m.get("name", ""))


def _traces(methods: Sequence[Mapping[str, Any]]) -> Html | None:
    """Best score so far against cost, of every method that evaluates more than one point."""
    series = []
    for i, m in enumerate(methods):
        line = _line(m.get("trace"), m.get("trace_passes"))
        if len(line) > 1:
            x, y = zip(*line, strict=True)
            series.append(replace(compared(i, _method(m), 0.0, 0.0), x=x, y=y, sd=(), kind="steps"))
    if not series:
        return None
    note = "mean over conditions of the best score up to here"
    return chart("Best so far", series, _X_LABEL, log_x=True, x_ticks=POWERS, note=note, named=False)


def _line(trace: Any, passes: Any) -> list[tuple[float, float]]:
    """(cost, best score): over the iterations of all starts together, or over the starts where nothing is iterated.

    `trace[s][i]` is the best of the first s + 1 starts and i iterations, `passes[s][i]` what that costs.
    """
    if not isinstance(trace, list) or not isinstance(passes, list) or len(trace) != len(passes) or not trace:
        return []
    iterated = len(trace[-1]) > 1
    scores = trace[-1] if iterated else [row[0] for row in trace]
    costs = passes[-1] if iterated else [row[0] for row in passes]
    return [(float(c), float(v)) for c, v in zip(costs, scores, strict=True)]


def _pictures(folder: Folder) -> list[Html]:
    """Strips of the searches that took steps: start, every step, winner."""
    found = folder.search.get("pictures")
    files = {name: folder.path / str(file) for name, file in found.items()} if isinstance(found, dict) else {}
    return [
        details(f"Pictures: {name}", tag("figure", picture(file, f"search {name}"), class_="plate"))
        for name, file in files.items()
        if file.is_file() and file.resolve().is_relative_to(folder.path.resolve())
    ]
