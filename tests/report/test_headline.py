from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softdimo.report.folder import Folder
from softdimo.report.headline import about, headline
from tests.report.fake import evaluation, full_run, row, write_json, write_yaml


def found(tmp_path: Path, rows: list[dict[str, Any]], written: list[dict[str, Any]] | None = None) -> Any:
    write_yaml(tmp_path / "recipe.yaml", {"eval": {"rows": written or []}})
    write_json(tmp_path / "eval.json", evaluation() | {"rows": rows})
    return headline(Folder(tmp_path))


TEACHERS = [
    row("t16", "teacher", 31, 8.9, 0.9),
    row("t8", "teacher", 15, 10.8, 0.9),
    row("t1", "teacher", 1, 62.0, 0.6),
]


@pytest.mark.parametrize(
    ("fd", "said"),
    [
        (
            9.4,
            "The teacher needs 31 passes to match the student's one: Fréchet distance 8.90 at 31, but only 10.8 at 15",
        ),
        (
            12.0,
            "The teacher needs 15 passes to match the student's one: Fréchet distance 10.8 at 15, but only 62.0 at 1",
        ),
        (5.0, "One pass of the student is ahead of every teacher row, up to 31 passes"),
        (90.0, "The teacher is ahead at the student's own cost (Fréchet distance 62.0 against 90.0)"),
    ],
)
def test_the_verdict_names_what_the_teacher_needs(tmp_path: Path, fd: float, said: str) -> None:
    made = found(tmp_path, [row("s", "student", 1, fd, 0.9), *TEACHERS])
    assert made.verdict.startswith(said)
    assert (made.reference["name"], made.naive["name"]) == ("t16", "t1")


def test_the_runs_own_student_is_the_one_without_weights_decoded_hard(tmp_path: Path) -> None:
    rows = [row("old", "student", 1, 3.0, 0.9, decode="hard"), row("soft", "student", 1, 4.0, 0.9, decode="soft"),
            row("mine", "student", 1, 5.0, 0.9, decode="hard")]  # fmt: skip
    written = [{"name": "old", "of": "student", "weights": "x"}, {"name": "soft", "of": "student"},
               {"name": "mine", "of": "student", "weights": None}]  # fmt: skip
    assert found(tmp_path, rows, written).student["name"] == "mine"


def test_without_students_or_teachers(tmp_path: Path) -> None:
    assert found(tmp_path, TEACHERS) is None
    alone = found(tmp_path, [row("s", "student", 1, 3.0, 0.9)])
    assert (alone.reference, alone.naive, alone.verdict) == (None, None, "")


def test_about_says_what_was_done(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    said = about(Folder(run))
    assert "distilled into a student that draws an image in one network pass on the data set animals" in said
    assert "minimizes 3 terms (dimo, gan, reward) for 600 iterations of 48 samples" in said
    assert "starts from an earlier student" in said
    assert "Seed 3407." in said
    teacher = about(Folder(tmp_path / "cache" / "animals_teacher-0a1b2c3d"))
    assert "A masked-diffusion teacher is trained on the data set animals for 800 iterations" in teacher
