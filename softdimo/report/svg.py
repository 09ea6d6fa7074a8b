"""Charts as plain SVG in a `<figure>`: legend, axes, lines, points with error bars; `page.js` shows values on hover."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from softdimo.report.html import Html, tag
from softdimo.report.scale import Scale, fit, number, short

WIDTH, HEIGHT = 340.0, 212.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 8.0, 8.0, 34.0
COLORS = 8
_MOST = 240


@dataclass(frozen=True)
class Series:
    """One line or one set of points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    kind: str = "line"
    """`line` (smoothed when long), `steps` (a line with a mark at each point), `points`."""
    sd: Sequence[float] = ()
    """Half-length of the error bar of each point."""
    strong: bool = False
    """Larger marks: what the reader should look for."""
    diamond: bool = False
    """Diamonds instead of circles."""
    dash: int = 0
    """Line style: 0 is solid; 1 and 2 are dashed."""


_COMPARED = (0, 1, 2, 3, 5, 6, 7)
"""Colors of points that are compared; the gray of the teacher is left out."""


def compared(index: int, name: str, x: float, y: float, sd: float = math.nan, strong: bool = False) -> Series:
    """The index-th of several points in one chart: a color, and a shape when colors run out."""
    turn, color = divmod(index, len(_COMPARED))
    return Series(name, [x], [y], _COMPARED[color], "points", [sd], strong, diamond=turn % 2 == 1)


def chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    unit: str = "",
    *,
    log_x: bool = False,
    log_y: bool = False,
    levels: Sequence[tuple[str, float]] = (),
    x_ticks: Sequence[float] = (),
    zero: bool = False,
    note: str = "",
    named: bool = True,
) -> Html:
    """A figure. `levels` are named horizontal lines. Series without finite points are left out.

    Without `named` the legend is left out, for charts that share one.
    """
    series = [s for s in (_clean(s, log_x, log_y) for s in series) if s.x]
    lines = [_Line.of(s) for s in series]
    ys = [v for s in series for v in _extent(s)] + [v for _, v in levels]
    log_y = log_y and all(v > 0 for v in ys)
    crowd = max((sum(t.x == s.x for t in series) for s in series if s.kind == "points"), default=1)
    pad = 0.05 + 0.015 * crowd if any(s.kind != "line" for s in series) else 0.0
    x = fit([v for s in series for v in s.x], _LEFT, WIDTH - _RIGHT, log_x, pad)
    y = fit(ys, HEIGHT - _BOTTOM, _TOP, log_y, zero=zero)
    marks = [_grid(x, y, x_label, x_ticks), *(_level(i, v, x, y) for i, (_, v) in enumerate(levels))]
    marks += [_draw(line, x, y, _aside(line.series, series)) for line in lines]
    svg = tag(
        "svg",
        tag("title", title),
        tag("desc", describe(title, series, x_label)),
        marks,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=describe(title, series, x_label),
    )
    data = {
        "x": [x.start, x.end, x.low, x.high, int(x.log)],
        "label": x_label,
        "s": [
            {
                "n": line.series.name,
                "c": line.series.color,
                "x": [_trim(v) for v in line.x],
                "y": [_trim(v) for v in line.y],
            }
            for line in lines
        ],
    }
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("span", tag("b", title), f", {unit}" if unit else None),
            tag("small", note) if note else None,
            _legend(lines, levels) if named else None,
        ),
        svg,
        class_="chart",
        data_chart=json.dumps(data, separators=(",", ":"), ensure_ascii=False),
    )


def shared_legend(series: Sequence[Series], levels: Sequence[str] = ()) -> Html:
    """One legend for several charts: names without values."""
    items = [tag("span", _key(s), s.name) for s in series]
    items += [tag("span", _dash(i), name) for i, name in enumerate(levels)]
    return tag("p", items, class_="legend shared")


def describe(title: str, series: Sequence[Series], x_label: str) -> str:
    """What the chart shows, in words: first and last value of every series."""
    parts = [f"{s.name} from {number(s.y[0])} to {number(s.y[-1])}" for s in series]
    return f"{title}, over {x_label}: {'; '.join(parts)}." if parts else title


@dataclass(frozen=True)
class _Line:
    """A series as it is drawn: thinned, and smoothed when it is long."""

    series: Series
    x: list[float]
    y: list[float]
    raw: list[float]

    @staticmethod
    def of(series: Series) -> _Line:
        x, y = list(series.x), list(series.y)
        if series.kind != "line" or len(x) < 40:
            return _Line(series, x, y, [])
        step = -(-len(x) // _MOST)
        x = [sum(x[i : i + step]) / len(x[i : i + step]) for i in range(0, len(x), step)]
        y = [sum(y[i : i + step]) / len(y[i : i + step]) for i in range(0, len(y), step)]
        return _Line(series, x, smooth(y, len(y) / 40), y)


def smooth(values: Sequence[float], half_life: float) -> list[float]:
    """Exponential moving average with a half-life in points, without the bias of its start."""
    decay, mean, weight, out = 0.5 ** (1 / max(half_life, 1e-9)), 0.0, 0.0, []
    for v in values:
        mean, weight = decay * mean + (1 - decay) * v, decay * weight + (1 - decay)
        out.append(mean / weight)
    return out


def _clean(s: Series, log_x: bool, log_y: bool) -> Series:
    keep = [
        i
        for i, (a, b) in enumerate(zip(s.x, s.y, strict=True))
        if math.isfinite(a) and math.isfinite(b) and (a > 0 or not log_x)
    ]

    def pick(values: Sequence[float]) -> list[float]:
        return [values[i] for i in keep] if values else []

    return replace(s, x=pick(s.x), y=pick(s.y), sd=pick(s.sd))


def _extent(s: Series) -> list[float]:
    sd = [v if math.isfinite(v) else 0.0 for v in s.sd] or [0.0] * len(s.y)
    if len(s.y) >= 40:  # a spike must not flatten the curve
        ordered = sorted(s.y)
        return [ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]]
    return [v - d for v, d in zip(s.y, sd, strict=True)] + [v + d for v, d in zip(s.y, sd, strict=True)]


def _grid(x: Scale, y: Scale, x_label: str, x_ticks: Sequence[float]) -> list[Html]:
    out = []
    for v in y.ticks():
        at = round(y(v), 1)
        out.append(tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=at, y2=at, class_="grid"))
        out.append(tag("text", short(v), x=_LEFT - 6, y=at + 4, class_="tick", text_anchor="end"))
    for v in [t for t in x_ticks if x.low <= t <= x.high] or x.ticks(6):
        at = round(x(v), 1)
        out.append(tag("line", x1=at, x2=at, y1=HEIGHT - _BOTTOM, y2=HEIGHT - _BOTTOM + 4, class_="axis"))
        out.append(tag("text", short(v), x=at, y=HEIGHT - _BOTTOM + 16, class_="tick", text_anchor="middle"))
    base = HEIGHT - _BOTTOM
    out.append(tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=base, y2=base, class_="axis"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    out.append(tag("text", x_label, x=middle, y=HEIGHT - 4, class_="label", text_anchor="middle"))
    return out


def _level(index: int, value: float, x: Scale, y: Scale) -> Html:
    at = round(y(value), 1)
    return tag("line", x1=x.start, x2=x.end, y1=at, y2=at, class_=f"level l{index % 3}")


def _path(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale) -> str:
    inside = [(a, min(max(b, y.low), y.high)) for a, b in zip(xs, ys, strict=True)]
    return "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in inside)


def _aside(s: Series, series: Sequence[Series]) -> float:
    """Pixels by which a lone point moves sideways, so that points of equal cost do not hide one another."""
    twins = [t for t in series if t.kind == "points" and s.kind == "points" and list(t.x) == list(s.x)]
    return 10.0 * (twins.index(s) - (len(twins) - 1) / 2) if len(twins) > 1 else 0.0


def _draw(line: _Line, x: Scale, y: Scale, aside: float) -> Html:
    s = line.series
    out: list[Html] = []
    if line.raw:
        out.append(tag("path", d=_path(line.x, line.raw, x, y), class_="raw"))
    if s.kind in ("line", "steps") and len(line.x) > 1:
        out.append(tag("path", d=_path(line.x, line.y, x, y), class_=f"line d{s.dash % 3}"))
    if s.kind == "points" or len(line.x) == 1 or (s.kind == "steps" and len(line.x) <= 20):
        for i, (a, b) in enumerate(zip(s.x, s.y, strict=True)):
            cx, cy = round(x(a) + aside, 1), round(y(b), 1)
            if s.sd and math.isfinite(s.sd[i]) and s.sd[i] > 0:
                low = b - s.sd[i] if not y.log or b > s.sd[i] else y.low
                ends = {"y1": round(y(max(low, y.low)), 1), "y2": round(y(min(b + s.sd[i], y.high)), 1)}
                out.append(tag("line", x1=cx, x2=cx, **ends, class_="bar"))
            r = 5.5 if s.strong else 4 if s.kind == "points" else 3
            if s.diamond:
                out.append(
                    tag(
                        "path",
                        d=f"M{cx} {cy - r - 1}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z",
                        class_="dot",
                    )
                )
            else:
                out.append(tag("circle", cx=cx, cy=cy, r=r, class_="dot"))
    return tag("g", out, class_=f"c{s.color % COLORS}")


def _legend(lines: Sequence[_Line], levels: Sequence[tuple[str, float]]) -> Html | None:
    """Names beside their colors; curves with their last value, levels with theirs."""
    items = []
    for s, last in ((line.series, line.y[-1]) for line in lines):
        items.append(tag("span", _key(s), s.name, tag("var", number(last)) if s.kind == "line" else None))
    for i, (name, value) in enumerate(levels):
        items.append(tag("span", _dash(i), name, tag("var", number(value))))
    plain = len(items) == 1 and not lines[0].series.name if lines else not items
    return None if plain else tag("span", items, class_="legend")


def _key(s: Series) -> Html:
    if s.dash:
        line = tag("line", x1=0, x2=16, y1=4, y2=4, class_=f"line d{s.dash % 3} c{s.color % COLORS}")
        return tag("svg", line, class_="dash", viewBox="0 0 16 8", aria_hidden="true")
    shape = (" diamond" if s.diamond else " spot") if s.kind == "points" else ""
    return tag("i", class_=f"key k{s.color % COLORS}{shape}")


def _dash(index: int) -> Html:
    line = tag("line", x1=0, x2=16, y1=4, y2=4, class_=f"level l{index % 3}")
    return tag("svg", line, class_="dash", viewBox="0 0 16 8", aria_hidden="true")


def _trim(value: float) -> float:
    return float(f"{value:.4g}")
