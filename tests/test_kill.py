"""Runs that are stopped or killed, as processes: what they say, and that resuming gives the very same weights."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from softdimo import recipe as recipes
from softdimo import run as running
from softdimo.build import PRODUCT
from softdimo.engine import checkpoint
from tests import forked, tiny
from tests.faults.bench import ALONE, differences

OVERRIDES = ("train.iterations=60", "train.checkpoint_minutes=1e-6", "train.log_every=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes, and `runs/whole`: all terms of Soft-Di[M]O, never stopped. Every iteration writes a checkpoint."""
    folder = tiny.write(tmp_path_factory.mktemp("kill")).parent
    running.run(recipes.load(folder / "terms.yaml", (*OVERRIDES, *ALONE)), folder / "runs" / "whole")
    return folder


@pytest.fixture
def run(folder: Path) -> Path:
    """A run folder beside the whole one, so that the cached parts are shared."""
    shutil.rmtree(folder / "runs" / "part", ignore_errors=True)
    return folder / "runs" / "part"


def start(folder: Path, run: Path, *arguments: str, fresh: bool = False) -> forked.Command:
    words = ("run", folder / "terms.yaml", "--out", run, *OVERRIDES, *ALONE, *arguments)
    return forked.start(words, folder / "said", fresh=fresh)


def done(run: Path) -> int:
    found = checkpoint.complete(run / "checkpoints")
    return int(found[-1].name[-8:]) if found else 0


def check(folder: Path, run: Path) -> None:
    """Weights, averages, critics, optimizers, random streams, log: to the last bit. Nothing half-written is left."""
    assert differences(run, folder / "runs" / "whole") == []
    assert [str(p) for p in run.rglob(".*.partial")] == []


def resume(folder: Path, run: Path) -> None:
    process = start(folder, run, "--resume")
    assert process.wait() == 0, process.said


def test_ctrl_c_saves_says_how_to_go_on_and_loses_nothing(folder: Path, run: Path) -> None:
    process = start(folder, run)
    process.until(lambda: done(run) >= 5)
    process.send(signal.SIGINT)
    assert process.wait() == 130, process.said
    assert "Traceback" not in process.said
    kept = done(run)
    assert 5 <= kept < 60
    said = " ".join(process.said.split())
    assert f"stopped after iteration {kept} of 60; everything is saved in {run}." in said
    assert "Run the same command with --resume to go on" in said
    assert not (run / PRODUCT).exists()
    resume(folder, run)
    check(folder, run)


def kill(folder: Path, run: Path, after: int, delay: float, fresh: bool = False) -> bool:
    """SIGKILL a run `delay` seconds after iteration `after` is safe; whether it was still running."""
    process = start(folder, run, *(["--resume"] if run.exists() else []), fresh=fresh)
    process.until(lambda: done(run) >= after)
    time.sleep(delay)
    process.send(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0), process.said
    return process.code != 0


def kill_all_along(folder: Path, run: Path, kills: int, fresh: bool) -> int:
    """Kills at random moments from the first second to the last: in start-up, iterations, checkpoints, the export.

    Returns how many met a run that was still running.
    """
    rng = random.Random(time.time_ns())
    met = kept = 0
    for i in range(kills):
        if i % 6 == 5:  # before the next iteration: while the run starts, reads its checkpoint, or sweeps
            met += kill(folder, run, 0, rng.uniform(0, 4.0 if fresh else 0.4), fresh)
        else:
            met += kill(folder, run, max(kept, round(60 * (i + 1) / kills)), rng.uniform(0, 0.06), fresh)
        assert done(run) >= kept
        kept = done(run)
    resume(folder, run)
    check(folder, run)
    return met


def test_sigkills_at_random_moments_lose_nothing_that_was_saved(folder: Path, run: Path) -> None:
    assert kill_all_along(folder, run, 6, fresh=False) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [True, False])
def test_many_sigkills_one_after_the_other(folder: Path, run: Path, fresh: bool) -> None:
    assert kill_all_along(folder, run, 24, fresh) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 2.0, 3.0, 4.0, 5.0, 6.0])
def test_ctrl_c_at_any_moment_leaves_a_run_that_goes_on(folder: Path, run: Path, seconds: float) -> None:
    """During imports, before the first iteration, or later: exit code 130 (or done), no traceback."""
    process = start(folder, run, fresh=True)
    time.sleep(seconds)
    process.send(signal.SIGINT)
    assert process.wait(60) in (130, 0), process.said
    assert "Traceback" not in process.said
    resume(folder, run)
    check(folder, run)
