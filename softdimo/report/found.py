"""What test-time searches found: results as JSON and CSV, and one page with every picture inside."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from softdimo.errors import CheckpointError
from softdimo.files import write_json, write_text
from softdimo.report.found_page import page
from softdimo.search.winners import CONDITIONS, RESULT, read_result

Json = dict[str, Any]
RECORD, SCORES, TRACES, PAGE = "search.json", "scores.csv", "traces.csv", "report.html"
FILES = (RECORD, SCORES, TRACES, PAGE)
"""What is written beside the conditions' own folders."""


def recorded(folder: Path) -> Json | None:
    """`search.json` of a folder; None where there is none. CheckpointError where it is damaged."""
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"conditions": [], **found}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); restore it, or --fresh to begin again") from error


def record(folder: Path, about: Json, keys: Sequence[str]) -> Json:
    """Write `search.json`: what is searched for and how, and every whole result of the folder; returns it.

    The conditions of `keys` come first, in their order; what earlier commands found follows.
    """
    before = [str(c["key"]) for c in (recorded(folder) or {"conditions": []})["conditions"]]
    there = sorted(path.parent.name for path in (folder / CONDITIONS).glob(f"*/{RESULT}"))
    order = dict.fromkeys([*keys, *before, *there])
    results = [found for key in order if (found := read_result(folder / CONDITIONS / key)) is not None]
    whole = about | {"wanted": len(keys), "missing": len(set(keys) - {r["key"] for r in results})}
    whole |= {"conditions": results}
    write_json(folder / RECORD, whole)
    return whole


def publish(folder: Path, about: Json, keys: Sequence[str]) -> Path:
    """Write everything that is made of the conditions' results; returns the page."""
    whole = record(folder, about, keys)
    write_text(folder / SCORES, _csv(_scores(whole)))
    write_text(folder / TRACES, _csv(_traces(whole)))
    write_text(folder / PAGE, page(whole, folder))
    return folder / PAGE


def _scores(whole: Json) -> Iterator[Sequence[object]]:
    """A row per picture."""
    several, held = _names(whole)
    yield [
        "condition",
        "label",
        "turn",
        "image",
        "forward_equivalents",
        "score",
        *several,
        *(f"held_out.{h}" for h in held),
    ]
    for each in whole["conditions"]:
        for name, row in each["shown"].items():
            numbers = [row["rewards"].get(r) for r in several] + [row["held_out"].get(h) for h in held]
            where = [each["text"], each["label"], each["turn"], name]
            yield [*where, cost(each, name), row["score"], *numbers]


def _traces(whole: Json) -> Iterator[Sequence[object]]:
    """A row per point that was evaluated; starts and iterations are counted from 0."""
    several, _ = _names(whole)
    yield ["condition", "label", "turn", "start", "iteration", "score", *several]
    for each in whole["conditions"]:
        rewards: Mapping[str, list[list[float]]] = each["trace"]["rewards"]
        for s, points in enumerate(each["trace"]["score"]):
            for i, score in enumerate(points):
                named = [rewards[r][s][i] if r in rewards else None for r in several]
                yield [each["text"], each["label"], each["turn"], s, i, score, *named]


def _names(whole: Json) -> tuple[list[str], list[str]]:
    """Rewards that are told apart, and held-out ones."""
    return (whole["score"] if len(whole["score"]) > 1 else []), whole["held_out"]


def cost(result: Json, name: str) -> float | None:
    """Forward-equivalents that a picture took; None for those on the way."""
    budget = result["budget"]
    known = {"one_step": 1.0, "winner": budget["total"]}
    if result["best_of"] is not None:
        known["best_of_n"] = budget["calibration"] + float(result["best_of"])
    return known.get(name)


def _csv(rows: Iterator[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
