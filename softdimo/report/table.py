"""The table of metrics: `eval.json` as Markdown for READMEs and model cards, as HTML for the report."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softdimo.report.html import Html, join, table, tag
from softdimo.report.scale import digits_of, number

LABELS = {
    "fd": "Fréchet distance", "fid": "FID", "class_tv": "class TV", "inception_score": "Inception score",
}  # fmt: skip
_WORDS = {"clip": "CLIP", "geneval": "GenEval", "hps": "HPS"}
_LOWER = ("fd", "fid", "kid", "frechet", "tv", "distance", "divergence", "error", "loss")


def label(name: str) -> str:
    """A metric's name for people, with the direction that is better."""
    prefix, _, key = name.rpartition("/")
    return f"{f'{prefix} ' if prefix else ''}{spelled(key)} {'↓' if lower_is_better(name) else '↑'}"


def spelled(key: str) -> str:
    """A number's name in words."""
    return LABELS.get(key) or " ".join(_WORDS.get(word, word) for word in key.split("_"))


def lower_is_better(name: str) -> bool:
    """Distances, errors and losses are better when low; everything else when high."""
    return any(word in _LOWER for word in name.lower().replace("/", "_").replace("-", "_").split("_"))


@dataclass(frozen=True)
class Table:
    """`eval.json` made ready to print."""

    evaluation: Mapping[str, Any]

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows, as they were evaluated."""
        return list(self.evaluation.get("rows", []))

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.get("metrics", {})))

    @property
    def headline(self) -> str:
        """The metric that sums a row up: the first that is better when low, else the first; empty without metrics."""
        low = [name for name in self.metrics if lower_is_better(name) and not name.endswith("tv")]
        return (low or self.metrics or [""])[0]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """Rows of one kind: real, reconstruction, teacher, student."""
        return [row for row in self.rows if row.get("of") == kind]

    def value(self, row: Mapping[str, Any], name: str) -> float:
        """The metric of all images together, NaN where the row lacks it."""
        value = row.get("metrics", {}).get(name, {}).get("value")
        return math.nan if value is None else float(value)

    def sd(self, row: Mapping[str, Any], name: str) -> float:
        """Standard deviation of the seeds' own values; NaN with one seed."""
        entry = row.get("metrics", {}).get(name, {})
        sd = entry.get("sd")
        return float(sd) if sd is not None and len(entry.get("values", (0, 0))) > 1 else math.nan

    def cell(self, row: Mapping[str, Any], name: str) -> str:
        """`9.41 ± 0.28`, to the digits that the column's typical standard deviation leaves."""
        value, sd = self.value(row, name), self.sd(row, name)
        if not math.isfinite(value):
            return "–"
        places = self._places(name)
        if places is None:
            return number(value)
        shown = f"{value:.{places}f}".replace("-", "−")
        return f"{shown} ± {sd:.{places}f}" if math.isfinite(sd) else shown

    def leading(self, name: str) -> set[int]:
        """Rows within one standard deviation of the best generated one (teacher and student rows only)."""
        rows = [i for i, r in enumerate(self.rows) if r.get("of") in ("teacher", "student")]
        known = [i for i in rows if math.isfinite(self.value(self.rows[i], name))]
        if len(known) < 2:
            return set()
        sign = 1 if lower_is_better(name) else -1
        best = min(known, key=lambda i: sign * self.value(self.rows[i], name))
        spread = self.sd(self.rows[best], name)
        limit = sign * self.value(self.rows[best], name) + (spread if math.isfinite(spread) else 0.0)
        return {i for i in known if sign * self.value(self.rows[i], name) <= limit}

    def caption(self) -> str:
        """How many samples and seeds stand behind every number."""
        seeds = len(self.evaluation.get("seeds", []))
        spread = f"± standard deviation of the {seeds} seeds' shares; " if seeds > 1 else ""
        return f"{self.evaluation.get('samples', '?')} samples per row; {spread}passes count guidance twice."

    def _places(self, name: str) -> int | None:
        spreads = [s for row in self.rows if math.isfinite(s := self.sd(row, name)) and s > 0]
        if not spreads:
            return None
        return digits_of(statistics.median(spreads))


def markdown_table(evaluation: Mapping[str, Any] | Path, metrics: Sequence[str] = ()) -> str:
    """`eval.json` (its content or its path) as a Markdown table with a caption line; the leading numbers are bold.

    `metrics` chooses columns; all of them when empty.
    """
    made = Table(json.loads(evaluation.read_text("utf-8")) if isinstance(evaluation, Path) else evaluation)
    names = [n for n in metrics if n in made.metrics] if metrics else made.metrics
    leading = {name: made.leading(name) for name in names}
    lines = ["| | n | passes | " + " | ".join(label(n) for n in names) + " |", "|---|--:|--:|" + "--:|" * len(names)]
    for i, row in enumerate(made.rows):
        cells = [made.cell(row, n) for n in names]
        bold = [f"**{c}**" if i in leading[n] else c for n, c in zip(names, cells, strict=True)]
        lines.append(
            f"| {_plain(row.get('name', ''))} | {row.get('n', '–')} | {passes(row)} | " + " | ".join(bold) + " |"
        )
    return "\n".join([*lines, "", made.caption()])


def html_table(evaluation: Mapping[str, Any]) -> Html:
    """`eval.json` as an HTML table; student rows stand out, leading numbers are bold."""
    made = Table(evaluation)
    leading = {name: made.leading(name) for name in made.metrics}
    rows = []
    for i, row in enumerate(made.rows):
        cells: list[object] = [row.get("name", ""), row.get("n", "–"), passes(row)]
        for name in made.metrics:
            mean, _, sd = made.cell(row, name).partition(" ± ")
            shown = join([tag("b", mean) if i in leading[name] else mean, tag("small", f"± {sd}") if sd else None])
            cells.append(shown)
        rows.append((str(row.get("of", "")), cells))
    return table(
        ["", "n", "passes", *(label(n) for n in made.metrics)], rows, "Metrics of every row, " + made.caption()
    )


def passes(row: Mapping[str, Any]) -> str:
    """Network passes per sample; a dash for rows without a network."""
    value = row.get("passes")
    return f"{float(value):g}" if value else "–"


def _plain(value: object) -> str:
    """Text that cannot break a Markdown table."""
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
