"""Sweeps of a sampler's setting: rows of the table, faults in their place, tiny versions."""

import pytest

from softdimo import recipe
from tests.recipe.test_checks import changed, place

STUDENT = "decode: soft, sampler: {use: toy_sampler}}"


def swept(text):
    return changed(STUDENT, f"sampler: {{use: toy_sampler}}, sweep: {text}}}")


def load(tmp_path, text, smoke=False):
    (tmp_path / "recipe.yaml").write_text(text)
    return recipe.load(tmp_path / "recipe.yaml", smoke=smoke).recipe


def test_a_sweep_is_a_row_for_each_value(tmp_path):
    rows = load(tmp_path, swept("{steps: [2, 4, 8]}")).eval.rows
    assert [row.swept() for row in rows[:2]] == [(rows[0],), (rows[1],)]
    found = rows[2].swept()
    assert [row.name for row in found] == ["student, steps 2", "student, steps 4", "student, steps 8"]
    assert [row.sampler.steps for row in found] == [2, 4, 8]
    assert all(row.sampler.use == "toy_sampler" for row in found)


def test_a_tiny_version_sweeps_two_values(tmp_path):
    rows = load(tmp_path, swept("{steps: [2, 4, 8]}"), smoke=True).eval.rows
    assert [row.name for row in rows[2].swept()] == ["student, steps 2", "student, steps 4"]


@pytest.mark.parametrize(
    ("text", "mark", "message"),
    [
        ("{stesp: [1]}", "sweep: {", "stesp: the sampler `toy_sampler` has no setting `stesp`; did you mean `steps`?"),
        ("{use: [a]}", "sweep: {", "use: the sampler `toy_sampler` has no setting `use`"),
        ("{steps: [1, two]}", "[1, ", "steps.1: the sampler `toy_sampler` does not take it: Input should be a valid"),
        ("{steps: [1, 2, 1]}", "[1, 2, ", "steps.2: 1 is given twice"),
        ("{steps: []}", "sweep: {", "steps: must have at least 1 items, has 0"),
        ("{steps: 3}", "sweep: {steps: ", "steps: must be a list, not 3"),
        ("{steps: [1], other: [2]}", "{use: toy_sampler}, ", "sweeps one setting at a time, not steps and other"),
    ],
)  # fmt: skip
def test_faults(faults, text, mark, message):
    text = swept(text)
    lines = faults(text)
    between = ": " if message.startswith("sweeps") else "."
    assert len(lines) == 1
    assert lines[0].startswith(f"{place(text, mark)} eval.rows.2.sweep{between}{message}"), lines


def test_a_row_without_a_sampler_sweeps_nothing(faults):
    text = changed("{name: real, of: real}", "{name: real, of: real, sweep: {steps: [1]}}")
    assert faults(text) == [
        f"{place(text, 'name: real, of: real, ')} eval.rows.0.sweep: sweeps a setting of the sampler, and this row "
        "has none; remove it, or give the row a `sampler:`"
    ]
