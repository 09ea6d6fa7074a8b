"""The picture of the exact toy: total variation of every variant as bars, for readers who have not seen the code."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from softdimo.strips import FRAME, INK, MUTED, PAPER, save

GOOD, BAD, BAND = (47, 109, 181), (192, 72, 61), (232, 240, 249)
WIDTH, LEFT, RIGHT, MARGIN = 1640, 470, 440, 28
ROW, BAR, HEAD, TOP, BOTTOM = 34, 18, 46, 196, 70
LARGEST, TICK = 0.8, 0.1
"""End of the axis, and the distance of its ticks."""


def draw(result: Mapping[str, Any], path: Path) -> Path:
    """Bars of the mean, a whisker from the least to the greatest seed, reference lines; blue where it is solved."""
    groups = [(name, list(rows)) for name, rows in groupby(result["rows"], key=lambda row: row["group"])]
    bottom = TOP + len(groups) * HEAD + len(result["rows"]) * ROW
    picture = Image.new("RGB", (WIDTH, bottom + BOTTOM), PAPER)
    pen = ImageDraw.Draw(picture)
    _heading(pen, result)
    pen.rectangle((LEFT, TOP, _x(result["solved"]), bottom), fill=BAND)
    for i in range(round(LARGEST / TICK) + 1):
        x = _x(i * TICK)
        pen.line((x, TOP, x, bottom), fill=FRAME)
        pen.text((x, bottom + 8), f"{i * TICK:.1f}", fill=MUTED, font=_font(19), anchor="ma")
    label = "total variation between the student's joint and the data's (0 is perfect)"
    pen.text(((LEFT + _x(LARGEST)) / 2, bottom + 36), label, fill=INK, font=_font(20), anchor="ma")
    for key, said, up in (("best_factorized", "best of independent tokens", 36), ("start", "before training", 10)):
        x = _x(result[key])
        pen.line((x, TOP - up, x, bottom), fill=INK, width=2)
        pen.text((x + 8, TOP - up), f"{said} {result[key]:.3f}", fill=INK, font=_font(19), anchor="lm")
    pen.text((LEFT - 14, TOP - 10), f"solved: below {result['solved']:g}", fill=GOOD, font=_font(19), anchor="rd")
    y = TOP
    for name, rows in groups:
        pen.text((MARGIN, y + HEAD - 10), name, fill=INK, font=_font(23), anchor="ls", stroke_width=0.5)
        y += HEAD
        for row in rows:
            _bar(pen, row, y + ROW / 2, max(row["tv"]) <= result["solved"])
            y += ROW
    pen.line((LEFT, TOP, LEFT, bottom), fill=INK)
    said = "; ".join(f"{row['name']} {row['mean']:.4f}" for row in result["rows"])
    return save(picture, path, f"Total variation, mean of {len(result['seeds'])} seeds: {said}")


def _heading(pen: ImageDraw.ImageDraw, result: Mapping[str, Any]) -> None:
    p = ", ".join(
        f"p({pair}) = {value:g}" for pair, value in zip(("00", "01", "10", "11"), result["joint"], strict=True)
    )
    pen.text((MARGIN, MARGIN), "Which settings let one step learn two coupled coins?", fill=INK, font=_font(32))
    lines = (
        f"Data: two binary tokens, {p}. A one-step student of {result['iterations']} iterations of Di[M]O; its joint",
        f"distribution is summed exactly. Bar: mean of {len(result['seeds'])} training seeds; whisker: least to most.",
    )
    for i, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + 46 + 27 * i), line, fill=MUTED, font=_font(20))


def _bar(pen: ImageDraw.ImageDraw, row: Mapping[str, Any], y: float, solved: bool) -> None:
    color = GOOD if solved else BAD
    pen.line((MARGIN, y + ROW / 2, WIDTH - MARGIN, y + ROW / 2), fill=FRAME)
    pen.text((LEFT - 14, y), row["name"], fill=INK, font=_font(20), anchor="rm")
    pen.rectangle((LEFT, y - BAR / 2, _x(row["mean"]), y + BAR / 2), fill=color)
    low, high = _x(min(row["tv"])), _x(max(row["tv"]))
    pen.line((low, y, high, y), fill=INK, width=2)
    for x in (low, high):
        pen.line((x, y - 6, x, y + 6), fill=INK, width=2)
    value = f"{row['mean']:.3f}"
    x = high + 12
    pen.text((x, y), value, fill=color, font=_font(20), anchor="lm", stroke_width=0.4)
    pen.text((WIDTH - RIGHT + 90, y), row["note"], fill=MUTED, font=_font(19), anchor="lm")


def _x(value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * value / LARGEST


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
