from __future__ import annotations

import json
import math
import re
from html import unescape

from softdimo.report.svg import HEIGHT, WIDTH, Series, chart, compared, smooth


def data(figure: str) -> dict:
    return json.loads(unescape(re.search(r'data-chart="([^"]*)"', figure).group(1)))


def test_a_line_has_axes_a_legend_with_its_last_value_and_words() -> None:
    figure = chart("Loss", [Series("dimo", [0, 10, 20], [3.0, 2.0, 1.5])], "iteration", "nats")
    assert "dimo<var>1.50</var>" in figure
    assert "Loss, over iteration: dimo from 3.00 to 1.50." in figure
    assert "<b>Loss</b>, nats</span>" in figure
    assert data(figure)["s"] == [{"n": "dimo", "c": 0, "x": [0, 10, 20], "y": [3.0, 2.0, 1.5]}]


def test_values_that_are_not_finite_are_left_out() -> None:
    figure = chart("t", [Series("a", [0, 1, 2], [1.0, math.nan, 3.0]), Series("b", [0], [math.nan])], "x")
    assert [s["y"] for s in data(figure)["s"]] == [[1.0, 3.0]]
    assert "nan" not in figure


def test_long_series_are_thinned_and_smoothed_beside_the_raw_line() -> None:
    n = 5000
    figure = chart("t", [Series("a", list(range(n)), [(-1) ** i + 5 for i in range(n)])], "x")
    drawn = data(figure)["s"][0]
    assert len(drawn["x"]) <= 240
    assert max(drawn["y"]) - min(drawn["y"]) < 0.5
    assert 'class="raw"' in figure
    assert len(figure) < 20_000


def test_one_spike_does_not_flatten_a_long_curve() -> None:
    values = [1.0 + 0.01 * i for i in range(200)]
    values[3] = 1e9
    figure = chart("t", [Series("a", list(range(200)), values)], "x")
    ticks = [float(t.replace("−", "-")) for t in re.findall(r'text-anchor="end">([−\d.]+)<', figure)]
    assert max(ticks) < 10


def test_everything_is_drawn_inside_the_picture() -> None:
    series = [Series("a", [1, 4, 16], [5.0, 2.0, 1.0], kind="steps", sd=[0.5, 0.1, 0.0]), compared(1, "b", 1, 3.0, 9.0)]
    figure = chart("t", series, "passes", log_x=True, log_y=True, levels=[("real", 0.5)])
    for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', figure):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT
    assert figure.count("<circle") == 4
    assert figure.count('class="bar"') == 3
    assert "real<var>0.500</var>" in figure


def test_points_of_equal_cost_stand_side_by_side() -> None:
    figure = chart("t", [compared(i, f"m{i}", 1.0, 2.0) for i in range(3)], "passes")
    assert len(set(re.findall(r'cx="([\d.]+)"', figure))) == 3


def test_after_seven_colors_come_diamonds() -> None:
    series = [compared(i, f"m{i}", i + 1.0, 2.0) for i in range(9)]
    assert [s.diamond for s in series] == [False] * 7 + [True] * 2
    assert len({(s.color, s.diamond) for s in series}) == 9


def test_a_log_axis_falls_back_where_values_are_not_positive() -> None:
    assert "nan" not in chart("t", [Series("a", [0, 1], [-1.0, 2.0])], "x", log_y=True)


def test_names_are_escaped() -> None:
    figure = chart("<i>", [Series("</svg><script>", [0, 1], [1, 2])], "<x>")
    assert "<script" not in figure
    assert "<i>" not in figure


def test_a_chart_without_points_is_still_a_chart() -> None:
    assert "<svg" in chart("t", [], "x")


def test_smoothing_keeps_a_constant() -> None:
    assert smooth([2.0] * 5, 3.0) == [2.0] * 5


def test_dashed_lines_have_dashed_keys_and_long_steps_no_marks() -> None:
    xs = list(range(30))
    figure = chart("t", [Series("a", xs, xs, kind="steps", dash=1), Series("b", [0, 9], [1, 2], kind="steps")], "x")
    assert figure.count('class="line d1"') == 1
    assert figure.count('class="line d1 c0"') == 1
    assert figure.count("<circle") == 2
