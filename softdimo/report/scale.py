"""Axes: a linear or logarithmic map from values to pixels, its ticks, and numbers for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Values in [low, high] -> pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        share = 0.5 if high == low else (at - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values inside the range; powers of ten where a log axis spans enough of them."""
        return _log_ticks(self.low, self.high, count) if self.log else _linear_ticks(self.low, self.high, count)


def fit(
    values: Sequence[float], start: float, end: float, log: bool = False, pad: float = 0.06, zero: bool = False
) -> Scale:
    """A scale around finite `values` (positive ones when `log`) with a margin; `zero` includes 0 on a linear axis."""
    usable = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not usable:
        return Scale(1.0 if log else 0.0, 10.0 if log else 1.0, start, end, log)
    low, high = min(usable), max(usable)
    if log:
        margin = (high / low) ** pad if high > low * (1 + 1e-9) else 1.5
        return Scale(low / margin, high * margin, start, end, True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    flat = high - low <= 1e-9 * max(abs(low), abs(high))
    margin = (abs(high) * 0.1 or 1.0) if flat else pad * (high - low)
    return Scale(low if zero and low == 0 else low - margin, high if zero and high == 0 else high + margin, start, end)


def number(value: float, digits: int = 3) -> str:
    """A number for people: `digits` significant digits, no exponent between 1e-4 and 1e6, a true minus sign."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        out = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}"
    else:
        places = max(0, digits - 1 - math.floor(math.log10(size)))
        out = f"{value:.{places}f}"
    return out.replace("-", "−")


def spread(mean: float, sd: float) -> str:
    """`9.4 ± 0.3`: both to the digits that `sd` leaves, two where it begins with 1 or 2."""
    if not math.isfinite(sd) or sd <= 0:
        return number(mean)
    places = digits_of(sd)
    return f"{mean:.{places}f} ± {sd:.{places}f}".replace("-", "−")


def digits_of(sd: float) -> int:
    """Decimals worth showing beside a standard deviation (at most 4)."""
    power = math.floor(math.log10(sd))
    return min(4, max(0, (1 if sd < 3 * 10.0**power else 0) - power))


def short(value: float) -> str:
    """A tick label: trailing zeros dropped, tens of thousands as k."""
    if abs(value) >= 10_000 and value % 100 == 0 and abs(value) < 1e6:
        return f"{value / 1000:g}k".replace("-", "−")
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    if high <= low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    places = max(0, 2 - math.floor(math.log10(step)))
    return [round(k * step, places) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    tens = [10.0**k for k in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
    if len(tens) >= 3:
        return tens[:: max(1, round(len(tens) / count))]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for marks in ((1, 3), (1, 2, 5), (1, 2, 3, 5, 7)):
        ticks = [m * 10.0**k for k in decades for m in marks if low <= m * 10.0**k <= high]
        if len(ticks) >= 3:
            return ticks
    return _linear_ticks(low, high, count)
