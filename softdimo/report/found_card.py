"""One condition of a test-time search: its pictures above their scores, and how its starts climbed."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from softdimo.report.html import Html, details, tag
from softdimo.report.scale import number
from softdimo.report.svg import Series, chart
from softdimo.search.winners import CONDITIONS

Json = dict[str, Any]
STEPS = 8
"""Steps of one condition that are shown; of more, evenly spaced ones."""
LARGEST = 256
"""Pixels; larger pictures are reduced on the page. The files are whole."""
SMALL = 100
"""Pictures of fewer pixels are enlarged without smoothing."""
NAMES = {"one_step": "no search", "winner": "winner", "best_of_n": "best of N", "start": "start"}
"""What pictures are called; those in between are steps."""


def thinned(names: Sequence[str]) -> list[str]:
    """The pictures to show, what compares first: then the start, and at most `STEPS` steps, the last one among them."""
    steps = [name for name in names if name not in NAMES]
    few = min(len(steps), STEPS)
    kept = [steps[round((i + 1) * len(steps) / few) - 1] for i in range(few)]
    return [*(name for name in NAMES if name in names), *kept]


def thumbnail(file: Path) -> tuple[str, int]:
    """A picture as a data URI of at most `LARGEST` pixels, and its width: PNG, or JPEG where that is much smaller."""
    with PILImage.open(file) as opened:
        picture = opened.convert("L" if opened.mode == "L" else "RGB")
    width = picture.width
    picture.thumbnail((LARGEST, LARGEST), PILImage.Resampling.LANCZOS)
    packed: dict[str, bytes] = {}
    for kind in ("png", "jpeg"):
        buffer = io.BytesIO()
        picture.save(buffer, kind.upper(), optimize=True, quality=88)
        packed[kind] = buffer.getvalue()
    kind = "jpeg" if width >= SMALL and 2 * len(packed["jpeg"]) < len(packed["png"]) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(packed[kind]).decode()}", width


def card(whole: Json, result: Json, shown: Sequence[str], pictures: Mapping[str, tuple[str, int]]) -> Html:
    """One condition. `pictures` are the thumbnails of `shown`; without them there are links to the files."""
    several = whole["score"] if len(whole["score"]) > 1 else []
    values = result["shown"]
    rows = [("score", "optimized", [values[n]["score"] for n in shown])]
    rows += [(r, "", [values[n]["rewards"].get(r) for n in shown]) for r in several]
    rows += [(f"{h}, held out", "", [values[n]["held_out"].get(h) for n in shown]) for h in whole["held_out"]]
    body = [
        tag(
            "tr",
            tag("th", label, scope="row"),
            [tag("td", "–" if v is None else number(v), class_=_css(n)) for n, v in zip(shown, line, strict=True)],
            class_=kind or None,
        )
        for label, kind, line in rows
    ]
    heads = [_head(result, name, pictures.get(name)) for name in shown]
    corner = tag("th", tag("span", "score", class_="sr"))
    grid = tag("table", tag("thead", tag("tr", corner, heads)), tag("tbody", body), class_="shots")
    turn = f", search {result['turn'] + 1}" if result["turn"] else ""
    return tag(
        "article",
        tag("h3", result["text"], turn),
        tag("p", _meta(whole, result), class_="meta"),
        tag("div", grid, class_="scroll", tabindex="0", role="region", aria_label=f"Images: {result['text']}"),
        _starts(result),
        class_="found",
        id=result["key"],
    )


def _head(result: Json, name: str, picture: tuple[str, int] | None) -> Html:
    said = f"best of {result['best_of']}" if name == "best_of_n" else NAMES.get(name, name.replace("_", " "))
    if picture is None:
        shot: Html = tag("a", "picture", href=f"{CONDITIONS}/{result['key']}/{name}.png")
    else:
        source, width = picture
        shot = tag("img", src=source, alt=f"{result['text']}: {said}", class_="small" if width < SMALL else None)
    return tag("th", shot, said, tag("small", _note(result, name)), scope="col", class_=_css(name))


def _css(name: str) -> str | None:
    return {"winner": "won", "start": "apart"}.get(name)


def _note(result: Json, name: str) -> str:
    """What a picture cost, or where it comes from."""
    winner, starts = result["winner"], len(result["trace"]["score"])
    if name == "one_step":
        return "1 pass"
    if name == "start":
        return f"no. {winner['start'] + 1} of {starts}" if starts > 1 else "random input"
    if name == "best_of_n":
        return "random inputs"
    if name == "winner":
        step = winner["iteration"]
        return (
            f"no. {winner['start'] + 1} of {starts}" if not _climbs(result) else f"= step {step}" if step else "= start"
        )
    return "\N{NO-BREAK SPACE}"


def _climbs(result: Json) -> bool:
    return any(len(points) > 1 for points in result["trace"]["score"])


def _meta(whole: Json, result: Json) -> str:
    """Budget and time in words."""
    budget = result["budget"]
    parts = [
        f"{budget[key]:g} {what}"
        for key, what in (("calibration", "for the units of the rewards"), ("screening", "for choosing the starts"))
        if budget[key]
    ]
    rest = budget["search"] - budget["screening"]
    spent = f"{budget['total']:g} forward-equivalents"
    if parts:
        spent += f": {', '.join([*parts, f'{rest:g} for the search'])}"
    taken = [len(points) - 1 for points in result["trace"]["score"]]
    most = whole["settings"].get("iterations")
    early = f" · starts stopped after {_and(taken)} steps" if isinstance(most, int) and min(taken) < most else ""
    beside = f", {result['batch']} conditions side by side" if result["batch"] > 1 else ""
    return f"{spent} · {number(result['seconds'], 2)} s{beside}{early}"


def _and(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def _starts(result: Json) -> Html | None:
    """Score of every start over its steps; of searches without steps, the best so far."""
    trace, won = result["trace"]["score"], result["winner"]["start"]
    if not _climbs(result) and len(trace) < 2:
        return None
    if _climbs(result):
        title = f"How {'the start' if len(trace) == 1 else f'all {len(trace)} starts'} climbed"
        names = [f"start {s + 1}{', the winner' if s == won else ''}" for s in range(len(trace))]
        series = [
            Series(name, range(len(points)), points, s, "steps", dash=int(s != won))
            for s, (name, points) in enumerate(zip(names, trace, strict=True))
        ]
        last, label = max(map(len, trace)) - 1, "step"
    else:
        best = list(accumulate((points[0] for points in trace), max))
        title, last, label = "Best so far", len(trace), "random inputs"
        series = [Series("", range(1, last + 1), best, 0, "steps")]
    ticks = range(0, last + 1, max(1, -(-last // 8)))
    return details(title, tag("div", chart("Score", series, label, x_ticks=ticks), class_="charts"))
