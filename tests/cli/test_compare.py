from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from softdimo.cli.compare import compare, flatten
from softdimo.errors import CheckpointError
from tests.report.fake import evaluation, full_run, metric, row, search, write_json, write_yaml


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    run = full_run(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    return run, other


def told(a: Path, b: Path) -> tuple[Any, str]:
    out = io.StringIO()
    found = compare(a, b, Console(file=out, width=160))
    return found, out.getvalue()


def test_equal_runs_differ_in_nothing(two: tuple[Path, Path]) -> None:
    found, text = told(*two)
    assert (found.settings, found.versions, found.alone) == ([], [], ([], []))
    assert all(d.verdict == "same" for d in found.metrics + found.search)
    assert "75 of 75 numbers are the same" in text


def test_settings_are_found_by_name_not_by_place(two: tuple[Path, Path]) -> None:
    recipe = (
        (two[1] / "recipe.yaml")
        .read_text()
        .replace("weight: 2.0", "weight: 4.0")
        .replace("iterations: 600", "iterations: 700")
    )
    (two[1] / "recipe.yaml").write_text(recipe)
    lock = json.loads((two[1] / "lock.json").read_text())
    lock["distributions"]["torch"] = "2.6.0"
    write_json(two[1] / "lock.json", lock)
    found, text = told(*two)
    assert found.settings == [("train.iterations", "600", "700"), ("train.terms.reward.weight", "2.0", "4.0")]
    assert found.versions == [("distributions.torch", "2.14.1", "2.6.0")]
    assert "train.terms.reward.weight" in text
    assert "2.6.0" in text


def test_items_with_the_same_name_are_told_apart_by_place() -> None:
    items = {"metrics": [{"use": "frechet", "k": 1}, {"use": "frechet", "k": 2}, {"use": "accuracy"}]}
    assert dict(flatten(items)) == {
        "metrics.0.use": "frechet", "metrics.0.k": "1", "metrics.1.use": "frechet", "metrics.1.k": "2",
        "metrics.accuracy.use": "accuracy",
    }  # fmt: skip


def test_a_change_counts_beyond_the_deviation_of_the_difference(two: tuple[Path, Path]) -> None:
    for path, fd, recall in ((two[0], 9.0, 0.80), (two[1], 9.5, 0.86)):
        made = evaluation()
        made["rows"] = [{"name": "s", "of": "student", "passes": 1, "metrics": {
            "fd": metric(fd, 0.4), "recall": metric(recall, 0.01), "coverage": metric(recall, None)}}]  # fmt: skip
        write_json(path / "eval.json", made)
    found, text = told(*two)
    verdicts = {d.metric: (d.verdict, round(d.change, 2)) for d in found.metrics}
    assert verdicts == {"fd": ("within noise", 0.5), "recall": ("better", 0.06), "coverage": ("?", 0.06)}
    assert found.metrics[0].noise == pytest.approx(0.4 * 2**0.5)
    assert "9.0 ± 0.4" in text
    assert "+0.500" in text


def test_lower_is_better_for_distances(two: tuple[Path, Path]) -> None:
    made = evaluation()
    made["rows"][8]["metrics"]["fd"] = metric(5.0, 0.1)
    write_json(two[1] / "eval.json", made)
    found, _ = told(*two)
    (changed,) = [d for d in found.metrics if d.change]
    assert (changed.row, changed.metric, changed.verdict) == ("Soft-Di[M]O", "fd", "better")


def test_search_methods_are_compared(two: tuple[Path, Path]) -> None:
    made = search()
    made["methods"][0]["score_mean"] = -0.9
    write_json(two[1] / "search.json", made)
    found, text = told(*two)
    (changed,) = [d for d in found.search if d.change]
    assert (changed.row, changed.verdict) == ("one step, argmax", "worse")
    assert "−0.180" in text


def test_rows_that_only_one_run_has_are_named(two: tuple[Path, Path]) -> None:
    made = evaluation()
    made["rows"][0] = row("another", "student", 1, 3.0, 0.5)
    write_json(two[1] / "eval.json", made)
    found, text = told(*two)
    assert found.alone == (["real held out"], ["another"])
    assert "only in other: another" in text


@pytest.mark.parametrize("change", ["features", "only", "samples"])
def test_unlike_evaluators_are_refused_and_the_fingerprint_is_named(two: tuple[Path, Path], change: str) -> None:
    made = evaluation()
    if change == "features":
        made["evaluator"]["frechet"]["features"] = "0" * 64
    elif change == "only":
        del made["evaluator"]["accuracy"]
    else:
        made["samples"] = 5000
    if change != "samples":
        made["evaluator_hash"] = "1" * 64
    write_json(two[1] / "eval.json", made)
    with pytest.raises(CheckpointError, match="cannot be compared") as caught:
        told(*two)
    wanted = {
        "features": "frechet.features: 9f86d0",
        "only": "accuracy.formula: argmax in",
        "samples": "samples: 1000 in",
    }
    assert wanted[change] in str(caught.value)
    assert "softdimo eval" in str(caught.value)
    assert caught.value.code == 3


def test_one_unmeasured_run_compares_by_settings(two: tuple[Path, Path]) -> None:
    (two[1] / "eval.json").unlink()
    (two[1] / "search.json").unlink()
    found, _ = told(*two)
    assert (found.metrics, found.search, found.alone) == ([], [], ([], []))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, two: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="is not a run folder"):
        compare(two[0], tmp_path / "cache")


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_yaml(tmp_path / place / "run" / "recipe.yaml", {"title": place})
    _, text = told(tmp_path / "a" / "run", tmp_path / "b" / "run")
    assert str(tmp_path / "a" / "run") in text.replace("\n", "")
