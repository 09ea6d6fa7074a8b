"""Runs that are stopped or killed, as processes: what they say, and that resuming gives the very same weights."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from softdimo import recipe as recipes
from softdimo import run as running
from softdimo.build import PRODUCT
from softdimo.engine import checkpoint
from softdimo.files import read_weights
from tests import tiny

OVERRIDES = ("train.iterations=60", "train.checkpoint_minutes=1e-6", "train.log_every=1")
ALONE = ("hardware.jobs=1", "hardware.threads=1", "hardware.accelerator=cpu")


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


def start(folder: Path, run: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "softdimo", "run", str(folder / "terms.yaml"), "--out", str(run)]
    return subprocess.Popen(
        [*command, *OVERRIDES, *ALONE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def done(run: Path) -> int:
    found = checkpoint.complete(run / "checkpoints")
    return int(found[-1].name[-8:]) if found else 0


def check_equal(run: Path, whole: Path) -> None:
    """Products, live weights, critics, the log: to the last bit."""
    names = [PRODUCT, "live.safetensors", "critics/dimo.safetensors", "critics/gan.safetensors"]
    for name in names:
        one, two = read_weights(run / name), read_weights(whole / name)
        assert one.keys() == two.keys()
        assert [k for k, v in one.items() if not torch.equal(v, two[k])] == []
    logs = []
    for path in (run, whole):
        with (path / "log.csv").open(newline="", encoding="utf-8") as file:
            logs.append(list(csv.DictReader(file)))
    assert [i for i, (mine, other) in enumerate(zip(*logs, strict=True)) if mine != other] == []


def resume(folder: Path, run: Path, *arguments: str) -> None:
    process = start(folder, run, "--resume", *arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said


def resume_here(folder: Path, run: Path) -> None:
    """Resume in this process: the same code without the seconds of start-up."""
    running.run(recipes.load(folder / "terms.yaml", (*OVERRIDES, *ALONE)), run, resume=True)


def test_ctrl_c_saves_says_how_to_go_on_and_loses_nothing(folder: Path, run: Path) -> None:
    process = start(folder, run)
    wait_for(lambda: done(run) >= 5, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    kept = done(run)
    assert 5 <= kept < 60
    assert f"stopped after iteration {kept} of 60; everything is saved in {run}." in " ".join(said.split())
    assert "Run the same command with --resume to go on" in " ".join(said.split())
    assert not (run / PRODUCT).exists()
    resume(folder, run)
    check_equal(run, folder / "runs" / "whole")


def kill_at_random(folder: Path, run: Path, after: int, delay: float) -> int:
    """SIGKILL a running process `delay` seconds after iteration `after`; the number of iterations that are safe."""
    process = start(folder, run, *(["--resume"] if run.exists() else []))
    wait_for(lambda: done(run) >= after, process)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return done(run)


def test_sigkill_at_a_random_moment_loses_nothing_that_was_saved(folder: Path, run: Path) -> None:
    rng = random.Random(time.time_ns())
    kept = kill_at_random(folder, run, rng.randrange(1, 30), rng.uniform(0, 0.05))
    assert 0 < kept < 60
    assert not (run / PRODUCT).exists()
    resume_here(folder, run)
    check_equal(run, folder / "runs" / "whole")


@pytest.mark.slow
def test_many_sigkills_one_after_the_other(folder: Path, run: Path) -> None:
    rng = random.Random(time.time_ns())
    for kill in range(10):
        kill_at_random(folder, run, rng.randrange(5 * kill, 5 * kill + 5), rng.uniform(0, 0.05))
    resume(folder, run)
    check_equal(run, folder / "runs" / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 2.0, 3.0, 4.0, 5.0, 6.0])
def test_ctrl_c_at_any_moment_leaves_a_run_that_goes_on(folder: Path, run: Path, seconds: float) -> None:
    """During imports, before the first iteration, or later: exit code 130 (or done), no traceback."""
    process = start(folder, run)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode in (130, 0), said
    assert "Traceback" not in said
    resume_here(folder, run)
    check_equal(run, folder / "runs" / "whole")
