"""Metrics with a reference of their own, and data sets without images; statistics made from a recipe's data."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from softdimo import recipe as recipes
from softdimo import run as running
from softdimo.cli.main import main
from softdimo.errors import DataError, RecipeError
from softdimo.evaluate import Pieces, Subject, evaluate
from softdimo.kinds import Batch
from softdimo.math.init import Init
from softdimo_plugins.metrics.accuracy import AccuracyMetric
from softdimo_plugins.metrics.frechet import FrechetMetric
from softdimo_plugins.metrics.precision_recall import PrecisionRecallMetric
from softdimo_plugins.samplers.one_step import OneStep
from tests import tiny
from tests.helpers import Blobs, CountingTeacher, Painter, Pooled

STUDENT = Subject("student", "student", CountingTeacher(), OneStep(init=Init()))


class Labels(Blobs):
    """Labels alone."""

    has_images = False

    def source(self, split):
        source = super().source(split)
        labels = source.get
        source.get = lambda index: Batch(labels(index).cond)
        return source


class Untouched(Labels):
    """A data set whose samples nobody may ask for."""

    def source(self, split):
        raise AssertionError(split)

    def fingerprint(self):
        return "untouched"


@pytest.fixture
def file(tmp_path):
    """Statistics and images of the training split of `Blobs`, rounded to bytes."""
    images = (Blobs().source("train").images * 255).round().to(torch.uint8)
    features = Pooled(1)(images.float() / 255)[0].detach().double().numpy()
    path = tmp_path / "reference.npz"
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).contiguous().numpy(), mu=features.mean(0), sigma=np.cov(features.T))
    return path


class Rounded(Blobs):
    def source(self, split):
        source = super().source(split)
        source.images = (source.images * 255).round() / 255
        return source


def metrics(file=None):
    net = Pooled(1)
    return lambda: {
        "frechet": FrechetMetric(net, file=file),
        "precision_recall": PrecisionRecallMetric(net, 3, None, None, file=file),
        "accuracy": AccuracyMetric(Pooled(2)),
    }


def run(path, data, metrics, *rows, **more):
    pieces = Pieces(data, metrics, rows or [STUDENT], tokenizer=Painter())
    return evaluate(pieces, path, samples=72, seeds=(0, 1), batch_size=10, **more)


def test_a_file_stands_for_the_data_and_the_data_is_left_alone(file, tmp_path):
    by_data = run(tmp_path / "a.json", Rounded(), metrics())
    by_file = run(tmp_path / "b.json", Untouched(), metrics(file))
    assert [row["name"] for row in by_data["rows"]] == ["real held out", "real halves", "student"]
    (student,) = by_file["rows"]
    for key, entry in by_data["rows"][2]["metrics"].items():
        assert student["metrics"][key]["values"] == pytest.approx(entry["values"], rel=1e-6), key
    for name in ("frechet", "precision_recall"):
        assert by_file["evaluator"][name]["reference"] == by_file["evaluator"]["frechet"]["reference"]
        assert by_data["evaluator"][name]["reference"] != by_file["evaluator"][name]["reference"]
    assert by_file["evaluator"]["precision_recall"]["reference_size"] == 60


def test_real_rows_beside_a_file(file, tmp_path):
    """Held-out images are compared with the file; halves of the data only where a metric compares with the data."""
    rows = run(tmp_path / "a.json", Rounded(), metrics(file))["rows"]
    assert [row["name"] for row in rows] == ["real held out", "student"]
    assert set(rows[0]["metrics"]) == {"fd", "precision", "recall", "accuracy", "class_tv"}

    def both():
        return metrics(file)() | {"data": FrechetMetric(Pooled(3), "data")}

    rows = run(tmp_path / "b.json", Rounded(), both)["rows"]
    assert [row["name"] for row in rows] == ["real held out", "real halves", "student"]
    assert set(rows[1]["metrics"]) == {"data/fd", "accuracy", "class_tv"}
    assert set(rows[2]["metrics"]) == {"fd", "precision", "recall", "accuracy", "class_tv", "data/fd"}


def test_what_is_missing_without_images(file, tmp_path):
    with pytest.raises(DataError, match="`frechet`, `precision_recall` compare with real images, but the data set has"):
        run(tmp_path / "a.json", Labels(), metrics())
    for of in ("real", "reconstruction"):
        with pytest.raises(RecipeError, match="`x` is of real images, but the data set has none; remove the row"):
            run(tmp_path / "a.json", Labels(), metrics(file), Subject("x", of), STUDENT)
    assert not (tmp_path / "a.json").exists()
    judged = run(tmp_path / "b.json", Untouched(), lambda: {"accuracy": AccuracyMetric(Pooled(2))})
    assert [row["name"] for row in judged["rows"]] == ["student"]


def test_a_trial_runs_without_images(tmp_path):
    table = run(tmp_path / "a.json", Untouched(), metrics(), trial=True, reference=20)
    assert table["evaluator"]["frechet"]["reference_size"] == 20
    assert [row["name"] for row in table["rows"]] == ["student"]


def test_a_swept_row_says_so(tmp_path):
    swept = [
        dataclasses.replace(
            STUDENT, name=f"T {t}", sampler=OneStep(init=Init(), temperature=t), sweep={"temperature": (1.0, 3.0)}
        )
        for t in (1.0, 3.0)
    ]
    rows = run(tmp_path / "a.json", Blobs(), metrics(), STUDENT, *swept, real=False)["rows"]
    assert ["sweep" in row for row in rows] == [False, True, True]
    assert rows[1]["sweep"] == {"temperature": [1.0, 3.0]}
    assert [row["sampler"]["temperature"] for row in rows] == [1.0, 1.0, 3.0]
    assert rows[0]["metrics"] == rows[1]["metrics"] != rows[2]["metrics"]


# recipes

FRECHET = """
title: Frechet distance of a tiny student
base: student.yaml
eval:
  samples: 20
  seeds: [0]
  reference: 200
  batch_size: 10
  metrics:
    - {use: frechet, features: {use: cnn, width: 4, features: 4}}
    - {use: accuracy, features: {use: cnn, width: 4, features: 5}}
  rows:
    - {name: student, of: student, sweep: {temperature: [1, 2.5]}}
"""


def test_statistics_of_a_recipes_data_stand_for_it(tmp_path, monkeypatch, capsys):
    home = tiny.finished(tmp_path)
    recipe = tmp_path / "frechet.yaml"
    recipe.write_text(FRECHET)
    monkeypatch.chdir(tmp_path)
    assert main(["statistics", str(recipe), "--out", "stats.npz", "hardware.accelerator=cpu"]) == 0
    assert "wrote stats.npz" in capsys.readouterr().out
    with np.load("stats.npz", allow_pickle=False) as arrays:
        assert (arrays["mu"].shape, arrays["sigma"].shape, int(arrays["n"])) == ((4,), (4, 4), 200)
        about = json.loads(str(arrays["provenance"]))
    tables = {}
    for name, more in (("data", ()), ("file", ("eval.metrics.frechet.reference=stats.npz",))):
        loaded = recipes.load(recipe, ["hardware.accelerator=cpu", "eval.rows.student.weights=" + str(home), *more])
        loaded = dataclasses.replace(loaded, recipe=loaded.recipe.model_copy(update={"train": None}))
        folder = running.eval_only(loaded, tmp_path / "runs" / name)
        tables[name] = json.loads((folder / "eval.json").read_text())
        assert "temperature was swept (1, 2.5)" in (folder / "report.html").read_text(encoding="utf-8")
    rows = {name: {row["name"]: row["metrics"] for row in table["rows"]} for name, table in tables.items()}
    for row in ("student, temperature 1", "student, temperature 2.5"):
        assert rows["file"][row] == rows["data"][row]
    assert rows["file"]["student, temperature 1"] != rows["file"]["student, temperature 2.5"]
    assert tables["file"]["evaluator"]["frechet"]["reference_size"] == 200
    assert about["features"] == tables["data"]["evaluator"]["frechet"]["features"]
    assert about["reference"] == tables["data"]["evaluator"]["frechet"]["reference"]
    assert about["data"] == tables["data"]["evaluator"]["data"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval=null", "no `eval:` section"),
        ("eval.metrics.frechet.reference=x.npz", r"add eval\.metrics\.frechet\.reference=null"),
        ("eval.metrics=[{use: accuracy, features: {use: cnn}}]", "add `frechet` to `eval.metrics`"),
        ("eval.metrics=[{use: frechet, features: {use: cnn}}, {use: frechet, name: b, features: {use: cnn}}]",
         "frechet and b do; keep one"),
    ],
)  # fmt: skip
def test_statistics_that_cannot_be_made(override, message, tmp_path):
    tiny.write(tmp_path)
    np.savez(tmp_path / "x.npz", mu=np.zeros(4), sigma=np.eye(4))
    (tmp_path / "frechet.yaml").write_text(FRECHET)
    override = override.replace("x.npz", str(tmp_path / "x.npz"))
    loaded = recipes.load(tmp_path / "frechet.yaml", ["hardware.accelerator=cpu", override])
    with pytest.raises(RecipeError, match=message):
        running.statistics(loaded, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
