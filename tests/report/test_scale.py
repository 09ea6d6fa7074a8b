from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softdimo.report.scale import Scale, fit, number, short, spread


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1, "1.00"), (123.456, "123"), (12345, "12345"), (0.01234, "0.0123"), (-3.14159, "−3.14"),
     (1234567, "1.23e6"), (0.0000123, "1.23e−5"), (math.nan, "–"), (math.inf, "–")],
)  # fmt: skip
def test_numbers_for_people(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("mean", "sd", "shown"),
    [(9.4, 0.28, "9.40 ± 0.28"), (9.4, 0.31, "9.4 ± 0.3"), (0.958, 0.006, "0.958 ± 0.006"), (153.2, 12.0, "153 ± 12"),
     (-0.72, 0.02, "−0.720 ± 0.020"), (5.0, math.nan, "5.00"), (5.0, 0.0, "5.00")],
)  # fmt: skip
def test_spread_shows_the_digits_that_the_deviation_leaves(mean: float, sd: float, shown: str) -> None:
    assert spread(mean, sd) == shown


def test_tick_labels() -> None:
    assert [short(v) for v in (0, 500, 20000, 0.25, -1)] == ["0", "500", "20k", "0.25", "−1"]


positive = st.floats(1e-6, 1e6)


@given(positive, positive, st.booleans())
def test_ticks_are_inside_sorted_and_few(a: float, b: float, log: bool) -> None:
    scale = fit([a, b], 0, 100, log)
    ticks = scale.ticks()
    assert ticks == sorted(set(ticks))
    assert 1 <= len(ticks) <= 16
    slack = 1e-6 * (scale.high - scale.low)
    assert all(scale.low - slack <= t <= scale.high + slack for t in ticks)


@given(st.lists(positive, min_size=2, max_size=9), st.booleans())
def test_a_fitted_scale_holds_its_values_in_order(values: list[float], log: bool) -> None:
    scale = fit(values, 10, 90, log)
    places = [scale(v) for v in sorted(values)]
    assert places == sorted(places)
    assert places[0] >= 10 - 1e-6
    assert places[-1] <= 90 + 1e-6


def test_a_log_scale_ignores_what_is_not_positive() -> None:
    assert fit([-1, 0, 1, 100], 0, 1, log=True).low > 0
    assert fit([], 0, 1) == Scale(0.0, 1.0, 0, 1)


def test_zero_can_be_included() -> None:
    assert fit([3, 9], 0, 1, zero=True).low == 0
