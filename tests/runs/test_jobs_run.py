"""Whole runs side by side: what one process gives, and what is left when they are stopped."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from softdimo.runs import jobs
from softdimo import recipe as recipes
from softdimo import run as running
from softdimo.build import PRODUCT
from softdimo.engine import checkpoint
from softdimo.engine.train import Training
from softdimo.errors import SoftdimoError
from softdimo.evaluate import table
from softdimo.files import read_weights
from softdimo.recipe import Loaded
from tests import tiny

ONE_THREAD = ("hardware.threads=1", "hardware.accelerator=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("jobs")).parent


def load(folder: Path, name: str, *overrides: str, workers: int = 1) -> Loaded:
    return recipes.load(folder / f"{name}.yaml", (*ONE_THREAD, f"hardware.jobs={workers}", *overrides))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The whole recipe in one process; its parts are in `runs/cache`."""
    return running.run(load(folder, "whole"), folder / "runs" / "alone")


def check_same_result(one: Path, other: Path) -> None:
    for name in (PRODUCT, "live.safetensors", "critics/dimo.safetensors"):
        a, b = read_weights(one / name), read_weights(other / name)
        assert [k for k, v in a.items() if not torch.equal(v, b[k])] == []
    tables = [json.loads((run / "eval.json").read_text(encoding="utf-8")) for run in (one, other)]
    for found in tables:
        for row in found["rows"]:
            row.pop("seconds")
    assert tables[0] == tables[1]
    assert (one / "log.csv").read_text(encoding="utf-8") == (other / "log.csv").read_text(encoding="utf-8")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rows that this process measures from here on."""
    seen: list[str] = []
    measure = table._measure

    def spy(row: table.Row, *rest: object) -> object:
        seen.append(row.name)
        return measure(row, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(table, "_measure", spy)
    return seen


def test_training_and_rows_side_by_side_give_what_one_process_gives(
    folder: Path, alone: Path, measured: list[str]
) -> None:
    said: list[str] = []
    out = running.run(load(folder, "whole", workers=2), folder / "runs" / "beside", say=said.append)
    assert said[0] == "4 jobs in 2 processes: this run, rows 1, rows 0, rows 2"
    assert measured == ["real held out", "real halves"]  # the others were gathered
    check_same_result(alone, out)
    lock = json.loads((out / "lock.json").read_text(encoding="utf-8"))
    assert lock["recipe"] == json.loads((alone / "lock.json").read_text(encoding="utf-8"))["recipe"]
    assert "worker.py" not in lock["command"]
    assert recipes.load(out).recipe.hardware.jobs == 2
    said.clear()
    measured.clear()
    running.run(load(folder, "whole", workers=2), out, say=said.append)
    assert [text.split()[0] for text in said] == ["report:"]  # nothing is worth a process now
    assert measured == []


def test_a_training_has_as_many_threads_here_as_in_a_job(
    folder: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a resumed run would differ in the last bits, as soon as its other jobs are done."""
    threads: list[int] = []
    monkeypatch.setattr(Training, "run", lambda self, *a: threads.append(torch.get_num_threads()))
    monkeypatch.setattr(running, "finish", lambda *a: threads.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    for workers, expected in ((1, [4, 4]), (2, [2, 4]), (4, [1, 4])):
        threads.clear()
        running.run(load(folder, "dimo", "hardware.threads=4", workers=workers), folder / "runs" / f"threads{workers}")
        assert threads == expected
    torch.set_num_threads(before)


def test_damaged_parts_of_a_table_are_named(folder: Path, alone: Path) -> None:
    parts = jobs.parts_folder(alone)
    parts.mkdir(exist_ok=True)
    (parts / "eval-1.json").write_text("{", encoding="utf-8")
    try:
        with pytest.raises(SoftdimoError, match=r"eval-1\.json is damaged"):
            running.run(
                load(
                    folder,
                    "whole",
                    workers=2,
                ),
                alone,
            )
    finally:
        (parts / "eval-1.json").unlink()


@pytest.mark.slow
def test_a_whole_run_from_nothing_side_by_side(folder: Path, alone: Path, measured: list[str]) -> None:
    out = running.run(load(folder, "whole", workers=2), folder / "elsewhere" / "beside")
    assert measured == ["real held out", "real halves"]
    check_same_result(alone, out)


def alive(marker: str) -> list[int]:
    """Processes whose command line names `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_with_jobs_that_is_stopped_or_killed_goes_on(folder: Path, alone: Path, number: signal.Signals) -> None:
    """The teacher and the judge train side by side when it happens; afterwards no process is left."""
    place = folder / f"stopped-{number.name}"
    for name in ("tokenizer", "teacher", "judge", "whole", "dimo"):
        place.mkdir(exist_ok=True)
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        if name in ("teacher", "judge"):
            text = text.replace("iterations: 4", "iterations: 1500")
        (place / f"{name}.yaml").write_text(text, encoding="utf-8")
    shutil.copytree(folder / "runs" / "cache", place / "runs" / "cache", ignore=lambda d, n: [
        x for x in n if x.startswith(("teacher", "judge"))
    ])  # fmt: skip
    out = place / "runs" / "whole"
    command = [sys.executable, "-m", "softdimo", "run", str(place / "whole.yaml"), "--out", str(out), *ONE_THREAD]
    command += ["hardware.jobs=2", "train.iterations=4"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: len(list((place / "runs" / "cache").glob("*/log.csv"))) == 3)
    time.sleep(0.5)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL), said
    assert "Traceback" not in said
    wait_for(lambda: not alive(str(place)), 30)
    saved = [
        p.name for run in (place / "runs" / "cache").glob("[tj]*") for p in checkpoint.complete(run / "checkpoints")
    ]
    assert len([name for name in saved if name not in ("iter-00000004", "iter-00001500")]) == 2, saved
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resumed at" in done.stderr


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)
