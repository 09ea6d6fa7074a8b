from __future__ import annotations

import json
from pathlib import Path

import pytest

from softdimo.report.table import Table, html_table, label, lower_is_better, markdown_table
from tests.report.fake import evaluation, metric, row


@pytest.mark.parametrize(
    ("name", "low"), [("fd", True), ("judge/fd", True), ("class_tv", True), ("fid", True), ("recall", False),
                      ("inception_score", False), ("accuracy", False), ("word_error", True), ("fdx", False)],
)  # fmt: skip
def test_direction_of_metrics(name: str, low: bool) -> None:
    assert lower_is_better(name) == low
    assert label(name).endswith("↓" if low else "↑")


def test_markdown_has_every_row_and_number() -> None:
    lines = markdown_table(evaluation()).splitlines()
    assert lines[0].startswith("| | n | passes | Fréchet distance ↓ | Inception score ↑ | accuracy ↑ |")
    assert len(lines) == 2 + len(evaluation()["rows"]) + 2
    assert "| Soft-Di[M]O | 1000 | 1 | 9.4 ± 0.3 | **8.53 ± 0.07** | **0.958 ± 0.006** |" in lines[10]
    assert "| real held out | 1000 | – | 1.2 | 8.94 | 0.971 |" in lines[2]
    assert lines[-1].startswith("1000 samples per row; ± standard deviation of the 3 seeds' shares")


def test_markdown_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(evaluation()))
    assert markdown_table(tmp_path / "eval.json") == markdown_table(evaluation())


def test_names_cannot_break_the_table() -> None:
    made = evaluation()
    made["rows"] = [row("a | b\n<img src=x>", "student", 1, 3.0, 0.5)]
    line = markdown_table(made).splitlines()[2]
    assert line.startswith("| a \\| b &lt;img src=x> | 1000 | 1 |")
    assert "<img" not in html_table(made)


def test_leaders_are_the_best_generated_row_and_those_within_its_deviation() -> None:
    table = Table({"rows": [
        {"name": "real", "of": "real", "metrics": {"fd": metric(0.1, None)}},
        {"name": "a", "of": "teacher", "metrics": {"fd": metric(5.0, 0.4)}},
        {"name": "b", "of": "student", "metrics": {"fd": metric(5.3, 0.1)}},
        {"name": "c", "of": "student", "metrics": {"fd": metric(5.5, 0.1)}},
    ]})  # fmt: skip
    assert table.leading("fd") == {1, 2}
    assert table.headline == "fd"


def test_numbers_that_are_missing_are_dashes() -> None:
    table = Table(
        {"rows": [{"name": "a", "of": "student", "metrics": {"fd": {"value": None, "sd": None, "values": []}}}]}
    )
    assert table.cell(table.rows[0], "fd") == "–"
    assert table.cell(table.rows[0], "recall") == "–"
    assert table.leading("fd") == set()


def test_a_single_seed_shows_no_deviation() -> None:
    made = {"samples": 10, "seeds": [0], "rows": [{"name": "a", "of": "student", "passes": 1,
            "metrics": {"fd": {"value": 3.14159, "sd": None, "values": [3.14159]}}}]}  # fmt: skip
    assert "| a | – | 1 | 3.14 |" in markdown_table(made)
    assert "±" not in markdown_table(made)


def test_html_marks_students() -> None:
    made = html_table(evaluation())
    assert (
        '<tr class="student"><th scope="row">Soft-Di[M]O</th><td>1000</td><td>1</td><td>9.4<small>± 0.3</small></td>'
        in made
    )
