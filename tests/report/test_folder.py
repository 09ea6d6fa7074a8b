from __future__ import annotations

import math
from pathlib import Path

import pytest

from softdimo.errors import CheckpointError
from softdimo.report.folder import Folder, references
from tests.report.fake import full_run, write_yaml


def test_a_log_that_was_resumed_and_cut_off(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("iteration,a/loss,b\n9,3.0,\n19,2.0,\n19,2.5,1.0\n29,1.0,nan\n39,0.\n4")
    log = Folder(tmp_path).log
    assert log.iteration == [9, 19, 29]
    assert log.columns["a/loss"] == [3.0, 2.5, 1.0]
    assert math.isnan(log.columns["b"][0])
    assert log.columns["b"][1] == 1.0


def test_columns_without_a_number_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("iteration,a,b\n1,2,\n2,3,\n")
    assert list(Folder(tmp_path).log.columns) == ["a"]


def test_missing_parts_are_empty(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert not folder.log
    assert (folder.recipe, folder.lock, folder.evaluation, folder.search, folder.health, folder.samples) == (
        {}, {}, {}, {}, [], [])  # fmt: skip
    assert folder.title == tmp_path.name


@pytest.mark.parametrize("name", ["eval.json", "lock.json", "search.json"])
@pytest.mark.parametrize("content", ['{"rows": [', "[1, 2]", ""])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    attribute = {"eval.json": "evaluation", "lock.json": "lock", "search.json": "search"}[name]
    with pytest.raises(CheckpointError, match=name):
        getattr(Folder(tmp_path), attribute)


def test_a_damaged_recipe_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("a: [1")
    with pytest.raises(CheckpointError, match=r"recipe\.yaml: damaged"):
        _ = Folder(tmp_path).recipe


def test_references_are_found_at_any_depth() -> None:
    found = {
        "a": {"weights": {"recipe": "x.yaml"}},
        "b": [{"from": {"recipe": "y.yaml", "set": {"seed": 1}}}],
        "recipe": 3,
    }
    assert list(references(found)) == ["x.yaml", "y.yaml"]


def test_stages_by_name_come_dependencies_first(tmp_path: Path) -> None:
    stages = Folder(full_run(tmp_path)).stages
    names = [(s.folder.path.name.split("-")[0], s.made) for s in stages]
    assert names == [
        ("animals_tokenizer", True), ("animals_teacher", True), ("animals_dimo", True), ("animals_judge", False),
        ("animals", True),
    ]  # fmt: skip


def test_an_ambiguous_name_is_left_out_rather_than_guessed(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    write_yaml(tmp_path / "cache" / "animals_dimo-ffffffff" / "recipe.yaml", {"title": "another"})
    assert "animals_dimo" not in {s.folder.path.name.split("-")[0] for s in Folder(run).stages}


def test_a_stage_may_have_been_run_by_its_name(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    (cached,) = (tmp_path / "cache").glob("animals_dimo-*")
    cached.rename(tmp_path / "animals_dimo")
    assert tmp_path / "animals_dimo" in [s.folder.path for s in Folder(run).stages]


def test_references_in_a_circle_end(tmp_path: Path) -> None:
    for a, b in (("a", "b"), ("b", "a")):
        write_yaml(
            tmp_path / "cache" / f"{a}-00000000" / "recipe.yaml", {"teacher": {"weights": {"recipe": f"{b}.yaml"}}}
        )
    write_yaml(tmp_path / "run" / "recipe.yaml", {"teacher": {"weights": {"recipe": "a.yaml"}}})
    assert [s.folder.path.name for s in Folder(tmp_path / "run").stages] == ["b-00000000", "a-00000000", "run"]
