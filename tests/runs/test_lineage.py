from __future__ import annotations

import json
from pathlib import Path

import pytest

from softdimo.errors import CheckpointError, WeightsError
from softdimo.runs.lineage import ancestry, cached, open_run
from softdimo.recipe import load
from softdimo.report.folder import Folder
from softdimo.spec import RecipeRef
from tests.tiny import finished


@pytest.mark.parametrize("smoke", [False, True])
def test_a_run_knows_whether_it_was_tiny_and_what_it_rests_on(tmp_path: Path, smoke: bool) -> None:
    run = finished(tmp_path, smoke)
    loaded = open_run(run)
    assert loaded.smoke == smoke
    assert [p.name.rpartition("-")[0] for p, _ in ancestry(run)] == ["tokenizer", "teacher"]
    assert all(made for _, made in ancestry(run))
    teacher = cached(run, smoke)(RecipeRef(recipe=str(tmp_path / "teacher.yaml")))
    assert teacher == ancestry(run)[1][0]
    assert [p.name.rpartition("-")[0] for p, _ in ancestry(teacher)] == ["tokenizer"]


def test_a_cached_run_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    run = finished(tmp_path)
    with pytest.raises(WeightsError, match=r"needs the weights of .*teacher\.yaml"):
        cached(run, False)(RecipeRef(recipe=str(tmp_path / "teacher.yaml"), set={"seed": 5}))


def test_recipes_that_changed_since_are_noticed(tmp_path: Path) -> None:
    run = finished(tmp_path)
    text = (tmp_path / "teacher.yaml").read_text()
    (tmp_path / "teacher.yaml").write_text(text.replace("iterations: 4", "iterations: 40"))
    with pytest.raises(CheckpointError, match="recipes that have changed since"):
        open_run(run)


def test_the_report_finds_stages_by_content_where_names_are_ambiguous(tmp_path: Path) -> None:
    run = finished(tmp_path)
    (tmp_path / "runs" / "cache" / "teacher-00000000").mkdir()
    assert [s.folder.path.name.rpartition("-")[0] or "student" for s in Folder(run).stages] == [
        "tokenizer", "teacher", "student"]  # fmt: skip
    assert (tmp_path / "runs" / "cache" / "teacher-00000000") not in [s.folder.path for s in Folder(run).stages]


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_a_damaged_lock_file_is_named(tmp_path: Path, content: str | None) -> None:
    run = finished(tmp_path)
    (run / "lock.json").unlink()
    if content is not None:
        (run / "lock.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"lock\.json is (missing|damaged)"):
        open_run(run)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run folder"):
        open_run(tmp_path)


def test_the_recorded_hash_is_that_of_training_alone(tmp_path: Path) -> None:
    run = finished(tmp_path)
    before = json.loads((run / "lock.json").read_text())["recipe"]
    loaded = load(tmp_path / "student.yaml", ["title=other", "train.log_every=3"])
    from softdimo.runs.lineage import training_hash

    assert training_hash(loaded) == before
