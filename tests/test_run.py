"""`softdimo run` in one process: the chain of recipes, what is reused, what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

import softdimo
from softdimo import recipe as recipes
from softdimo import run as running
from softdimo.build import PRODUCT
from softdimo.engine import checkpoint
from softdimo.engine.algorithm import Distillation
from softdimo.engine.train import Training
from softdimo.errors import CheckpointError, Interrupted, RecipeError, WeightsError, WriteError
from softdimo.files import read_weights, sha256, write_json
from softdimo.recipe import Loaded
from softdimo.runs.folder import RunFolder
from softdimo.runs.lineage import ancestry, cache_name, training_hash
from tests import tiny

ALONE = ("hardware.jobs=1", "hardware.threads=1", "hardware.accelerator=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes, and below `runs` what they made: the tokenizer, the teacher, the judge, and the whole of Di[M]O."""
    folder = tiny.write(tmp_path_factory.mktemp("run")).parent
    running.run(load(folder, "whole"), folder / "runs" / "whole")
    return folder


def load(folder: Path, name: str, *overrides: str, smoke: bool = False) -> Loaded:
    return recipes.load(folder / f"{name}.yaml", (*ALONE, *overrides), smoke)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Networks that are trained from here on."""
    seen: list[str] = []
    train = Training.run

    def spy(self: Training, *arguments: object) -> Path:
        seen.append(self.settings.network)
        return train(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "run", spy)
    return seen


def rows(run: Path) -> list[str]:
    with (run / "log.csv").open(newline="", encoding="utf-8") as file:
        return [row["iteration"] for row in csv.DictReader(file)]


def equal(a: Path, b: Path, name: str = PRODUCT) -> bool:
    one, two = read_weights(a / name), read_weights(b / name)
    return one.keys() == two.keys() and all(torch.equal(v, two[k]) for k, v in one.items())


# The chain


def test_one_run_makes_everything_that_it_needs(folder: Path) -> None:
    made = sorted(p.name.rpartition("-")[0] for p in (folder / "runs" / "cache").iterdir())
    assert made == ["judge", "teacher", "tokenizer"]
    for run in (*(folder / "runs" / "cache").iterdir(), folder / "runs" / "whole"):
        assert (run / PRODUCT).is_file()
        assert [p.name for p in checkpoint.complete(run / "checkpoints")] == ["iter-00000004"]
        assert rows(run) == ["1", "3"]
    whole = folder / "runs" / "whole"
    assert {p.name for p in whole.iterdir()} >= {
        "recipe.yaml", "lock.json", "log.csv", "health.txt", "samples", "critics", "live.safetensors", "eval.json",
        "search.json", "report.html", "timing.json",
    }  # fmt: skip
    assert (whole / "samples" / "00000004.png").read_bytes().startswith(b"\x89PNG")
    assert (whole / "critics" / "dimo.safetensors").is_file()
    assert not equal(whole, next((folder / "runs" / "cache").glob("teacher-*")))


def test_the_folder_says_what_was_run(folder: Path) -> None:
    whole, loaded = folder / "runs" / "whole", load(folder, "whole")
    lock = json.loads((whole / "lock.json").read_text(encoding="utf-8"))
    assert lock["recipe"] == training_hash(loaded)
    assert lock["distributions"]["torch"] == torch.__version__.split("+")[0]
    assert training_hash(recipes.load(whole)) == lock["recipe"]


def test_measuring_keeps_the_record_of_the_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "runs" / "cache", tmp_path / "cache")
    run = Path(shutil.copytree(folder / "runs" / "whole", tmp_path / "whole"))
    lock, table = (run / "lock.json").read_bytes(), json.loads((run / "eval.json").read_text(encoding="utf-8"))
    assert table["lock"]["softdimo"] == softdimo.__version__
    write_json(run / "eval.json", table | {"rows": table["rows"][:-1]})
    (run / "search.json").unlink()
    recipe = recipes.load(run).recipe
    monkeypatch.setattr("softdimo.runs.folder.__version__", "9.9")
    measured = recipes.load(run, (*ALONE, "train.log_every=1", "eval.batch_size=8"))
    running.eval_only(measured)
    running.search_only(measured)
    running.run(recipes.load(run, ALONE), run)  # there is nothing to do
    assert (run / "lock.json").read_bytes() == lock
    assert recipes.load(run).recipe == recipe
    again = json.loads((run / "eval.json").read_text(encoding="utf-8"))
    assert again["lock"]["softdimo"] == "9.9"
    assert [row["by"]["softdimo"] for row in again["rows"]] == [softdimo.__version__] * 4 + ["9.9"]
    assert json.loads((run / "search.json").read_text(encoding="utf-8"))["lock"]["softdimo"] == "9.9"


def test_evaluation_and_search_are_written(folder: Path) -> None:
    whole = folder / "runs" / "whole"
    table = json.loads((whole / "eval.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in table["rows"]] == ["real held out", "real halves", "codes", "teacher", "student"]
    assert [row["passes"] for row in table["rows"]][-2:] == [3, 1]
    assert all(0 <= row["metrics"]["accuracy"]["value"] <= 1 for row in table["rows"])
    search = json.loads((whole / "search.json").read_text(encoding="utf-8"))
    assert "best of 2" in [method["name"] for method in search["methods"]]
    assert "accuracy" in (whole / "report.html").read_text(encoding="utf-8")


def test_a_student_of_another_recipe_starts_as_it_was_trained_to(folder: Path) -> None:
    (folder / "rows.yaml").write_text(
        """\
base: whole.yaml
train: null
search: null
eval:
  rows:
    - {name: as trained, of: student, weights: {recipe: dimo.yaml, set: {init.r_init: 0.25}}}
    - name: as said
      of: student
      weights: {recipe: dimo.yaml, set: {init.r_init: 0.25}}
      sampler: {use: one_step, init: {r_init: 0.5}}
"""
    )
    running.run(load(folder, "rows"), folder / "runs" / "rows")
    table = json.loads((folder / "runs" / "rows" / "eval.json").read_text(encoding="utf-8"))
    assert [row["sampler"]["init"]["r_init"] for row in table["rows"] if row["of"] == "student"] == [0.25, 0.5]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_all_terms_train_in_every_precision(folder: Path, tmp_path: Path, precision: str) -> None:
    loaded = load(folder, "terms", f"hardware.precision={precision}", "train.log_every=1")
    shutil.copytree(folder / "runs" / "cache", tmp_path / "cache")
    out = running.run(loaded, tmp_path / "terms")
    with (out / "log.csv").open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    exact = {"dimo/weight": 1.0, "reward/weight": 1.0}
    assert {k: float(last[k]) for k in exact} == exact
    assert float(last["gan/weight"]) > 0
    assert all(torch.isfinite(v).all() for v in read_weights(out / PRODUCT).values())


# What is not done twice


def test_a_finished_run_is_not_trained_or_measured_again(
    folder: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = folder / "runs" / "whole"
    before = {p: sha256(p) for p in (folder / "runs").rglob("*.safetensors")}
    monkeypatch.setattr("softdimo.evaluate.table._measure", lambda *a: pytest.fail("measured again"))
    for resume in (False, True):
        running.run(load(folder, "whole"), whole, resume=resume)
    running.run(load(folder, "whole", "train.log_every=1"), whole)  # says more, computes the same
    assert trained == []
    assert {p: sha256(p) for p in (folder / "runs").rglob("*.safetensors")} == before


def test_another_recipe_takes_the_cached_parts(folder: Path, trained: list[str]) -> None:
    running.run(load(folder, "dimo", "train.iterations=2"), folder / "runs" / "short")
    assert trained == ["student"]
    running.run(load(folder, "teacher", "train.iterations=2"), folder / "runs" / "apart")
    assert trained == ["student", "teacher"]
    running.run(load(folder, "dimo", "teacher.weights.set={train.iterations: 2}"), folder / "runs" / "other")
    assert trained[2:] == ["student", "teacher"]  # on its way, a teacher of its own, in the cache
    assert equal(folder / "runs" / "apart", max((folder / "runs" / "cache").glob("teacher-*"), key=os.path.getmtime))


def test_the_same_recipe_gives_the_same_weights_whether_its_parts_are_cached_or_not(folder: Path) -> None:
    out = folder / "apart" / "dimo"
    running.run(load(folder, "dimo"), out)
    assert equal(out, folder / "runs" / "whole")
    assert equal(out, folder / "runs" / "whole", "critics/dimo.safetensors")


def test_a_run_folder_is_a_recipe_that_runs_where_it_is(folder: Path, tmp_path: Path, trained: list[str]) -> None:
    whole = folder / "runs" / "whole"
    assert running.run(recipes.load(whole, ALONE)) == whole
    (whole / "eval.json").unlink()
    assert running.eval_only(recipes.load(whole, ALONE)) == whole
    assert (whole / "eval.json").is_file()
    (whole / "search.json").unlink()
    assert running.search_only(recipes.load(whole, ALONE)) == whole
    assert (whole / "search.json").is_file()
    assert running.eval_only(recipes.load(whole, ALONE), tmp_path / "elsewhere") == tmp_path / "elsewhere"
    assert (tmp_path / "elsewhere" / "eval.json").read_bytes() != b""
    assert trained == []


def test_a_tiny_version_is_a_run_of_its_own(folder: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    out = running.run(load(folder, "whole", smoke=True))
    assert out == Path("runs/whole-smoke")
    assert sorted(trained) == ["features", "student", "teacher", "tokenizer"]
    assert rows(out) == ["0", "1"]
    assert running.run(recipes.load(out, ALONE)).name == "whole-smoke"
    assert running.eval_only(recipes.load(out, ALONE)).name == "whole-smoke"
    assert len(trained) == 4


# What is refused


@pytest.fixture
def interrupted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of Di[M]O, with the cached parts, that was stopped by a signal after its second iteration."""
    shutil.copytree(folder / "runs" / "cache", tmp_path / "cache")
    step = Distillation.step

    def stop(self: Distillation, iteration: int, real: object) -> object:
        if iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, iteration, real)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "step", stop)
        with pytest.raises(Interrupted, match="stopped after iteration 2 of 4"):
            running.run(load(folder, "dimo"), tmp_path / "dimo")
    return tmp_path / "dimo"


def test_an_unfinished_run_must_be_resumed_or_started_over(folder: Path, interrupted: Path) -> None:
    with pytest.raises(CheckpointError, match=r"dimo holds an unfinished run: --resume goes on, --fresh starts over"):
        running.run(load(folder, "dimo"), interrupted)
    running.run(load(folder, "dimo"), interrupted, resume=True)
    assert equal(interrupted, folder / "runs" / "whole")
    assert rows(interrupted) == ["1", "3"]


def test_fresh_starts_over_and_keeps_what_is_not_its_own(folder: Path, interrupted: Path) -> None:
    (interrupted / "notes.txt").write_text("mine", encoding="utf-8")
    (interrupted / "critics").mkdir(exist_ok=True)
    (interrupted / "critics" / "gone.safetensors").touch()
    running.run(load(folder, "dimo"), interrupted, fresh=True)
    assert equal(interrupted, folder / "runs" / "whole")
    assert rows(interrupted) == ["1", "3"]
    assert (interrupted / "notes.txt").is_file()
    assert not (interrupted / "critics" / "gone.safetensors").exists()


def test_a_folder_belongs_to_one_recipe(folder: Path, interrupted: Path) -> None:
    other = load(folder, "dimo", "seed=1")
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=r"holds a run of another recipe.*another --out, or --fresh"):
            running.run(other, interrupted, resume=resume)
    running.run(other, interrupted, fresh=True)
    assert not equal(interrupted, folder / "runs" / "whole")
    with pytest.raises(CheckpointError, match="holds a run of another recipe"):
        running.run(load(folder, "dimo"), interrupted)


def test_evaluation_alone_needs_the_finished_training_of_this_recipe(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"runs/whole holds no finished training; run `softdimo run"):
        running.eval_only(load(folder, "whole"))
    shutil.copytree(folder / "runs", tmp_path / "runs")
    with pytest.raises(CheckpointError, match="holds a run of another recipe"):
        running.eval_only(load(folder, "whole", "train.iterations=9"))
    with pytest.raises(RecipeError, match="has no `eval:` section"):
        running.eval_only(load(folder, "dimo"))


def test_two_runs_in_one_folder(folder: Path, trained: list[str]) -> None:
    held = RunFolder(folder / "runs" / "whole")
    held.hold()
    try:
        with pytest.raises(CheckpointError, match=r"another run is writing in .*whole; wait for it, or give another"):
            running.run(load(folder, "whole"), folder / "runs" / "whole")
    finally:
        held.release()
    assert trained == []
    running.run(load(folder, "whole"), folder / "runs" / "whole")


def test_a_run_waits_for_parts_that_another_run_is_making(folder: Path, tmp_path: Path, trained: list[str]) -> None:
    """Both runs need one teacher: the second takes what the first one made."""
    source = folder / "runs" / "cache" / cache_name(load(folder, "tokenizer"))
    held = RunFolder(tmp_path / "cache" / source.name)
    held.hold()
    said: list[str] = []

    def other() -> None:
        while not said:
            time.sleep(0.02)
        shutil.copy(source / PRODUCT, held.path / PRODUCT)
        held.release()

    thread = threading.Thread(target=other)
    thread.start()
    running.run(load(folder, "teacher"), tmp_path / "teacher", say=said.append)
    thread.join()
    assert said[0] == f"waiting for another run, which is making {held.path}"
    assert trained == ["teacher"]


def test_a_finished_run_by_name_is_what_another_recipe_needs(folder: Path, tmp_path: Path, trained: list[str]) -> None:
    tokenizer, teacher, dimo = (
        running.run(load(folder, name), tmp_path / name) for name in ("tokenizer", "teacher", "dimo")
    )
    assert trained == ["tokenizer", "teacher", "student"]
    assert [path for path, _ in ancestry(dimo)] == [tokenizer, teacher]
    other = f"teacher.weights={{recipe: {folder}/teacher.yaml, set: {{seed: 5}}}}"
    running.run(load(folder, "dimo", other), tmp_path / "other")
    assert trained[3:] == ["student", "teacher"]  # of other settings: made on the way, in the cache


def test_an_unfinished_run_by_name_is_left_alone(folder: Path, tmp_path: Path, trained: list[str]) -> None:
    (shutil.copytree(folder / "runs" / "whole", tmp_path / "dimo") / PRODUCT).unlink()
    shutil.copytree(folder / "runs" / "cache", tmp_path / "cache")
    before, said = sorted(tmp_path.glob("dimo/**/*")), list[str]()
    start = f"{{from: {{recipe: {folder}/dimo.yaml}}}}"
    (tmp_path / "more.yaml").write_text(f"base: {folder}/dimo.yaml\ntrain: {{iterations: 2, start: {start}}}\n")
    running.run(load(tmp_path, "more"), tmp_path / "more", say=said.append)
    (told,) = (text for text in said if "not used" in text)
    assert told.startswith(f"{tmp_path / 'dimo'} is unfinished and not used; to use it, stop and finish it: ")
    assert trained == ["student", "student"]
    assert sorted(tmp_path.glob("dimo/**/*")) == before


def test_a_folder_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"cannot write .*file/run: Not a directory"):
        running.run(load(folder, "dimo"), tmp_path / "file" / "run")
