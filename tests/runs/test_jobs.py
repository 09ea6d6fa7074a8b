"""Jobs side by side: what is planned, how processes are run and stopped, and that the result is that of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from softdimo.runs import jobs
from softdimo.runs import worker
from softdimo import recipe as recipes
from softdimo.errors import Interrupted, SoftdimoError
from softdimo.runs.jobs import Job
from tests import tiny

ONE_THREAD = ("hardware.threads=1", "hardware.accelerator=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("jobs")).parent


# The plan


def planned(folder: Path, name: str, *overrides: str, workers: int = 2, **there: object) -> dict[str, Job]:
    """Jobs by title, in order."""
    loaded = recipes.load(folder / f"{name}.yaml", overrides)
    found = jobs.plan(
        loaded, folder / "runs" / name, folder / "runs", workers, **({"cached": set(), "trained": False} | there)
    )  # type: ignore[arg-type]
    return {job.title: job for job in found}


def titles(plan: dict[str, Job], name: str) -> set[str]:
    """Titles of the jobs that a job waits for."""
    return {job.title for job in plan.values() if job.name in plan[name].needs}


def test_dependencies_come_first_and_the_longest_chain_before_the_rest(folder: Path) -> None:
    plan = planned(folder, "whole")
    assert set(plan) == {"tokenizer", "teacher", "judge", "this run", "rows 0", "rows 1", "rows 2"}
    order = list(plan)
    assert order[0] == "tokenizer"  # teacher, this run and the rows wait for it
    for title in order:
        assert all(order.index(needed) < order.index(title) for needed in titles(plan, title))
    assert titles(plan, "tokenizer") == titles(plan, "judge") == set()
    assert titles(plan, "teacher") == {"tokenizer"}
    assert titles(plan, "this run") == {"tokenizer", "teacher"}
    assert titles(plan, "rows 1") == {"tokenizer", "teacher", "judge"}
    assert titles(plan, "rows 2") == {"tokenizer", "teacher", "judge", "this run"}  # a row of the student itself


def test_what_is_there_is_not_made_again(folder: Path) -> None:
    keys = {title: job.name for title, job in planned(folder, "whole").items()}
    plan = planned(folder, "whole", cached={keys["tokenizer"], keys["judge"]}, trained=True)
    assert set(plan) == {"teacher", "rows 0", "rows 1", "rows 2"}
    assert set(planned(folder, "whole", trained=True, measured=True)) == {"tokenizer", "teacher", "judge"}
    assert titles(plan, "teacher") == set()
    assert titles(plan, "rows 0") == {"teacher"}


def test_rows_are_shared_by_cost_and_those_of_this_student_wait_for_it(folder: Path) -> None:
    sampled = "{name: %s, of: teacher, sampler: {use: maskgit, steps: %d}}"
    texts = ["{name: s, of: student}", "{name: r, of: real}", sampled % ("long", 8)]
    texts += [sampled % (f"t{i}", 2) for i in range(3)]
    rows = f"eval.rows=[{', '.join(texts)}]"
    assert {t for t in planned(folder, "whole", rows) if t.startswith("rows")} == {"rows 0", "rows 2", "rows 1 3 4 5"}
    assert {t for t in planned(folder, "whole", rows, workers=1) if t.startswith("rows")} == {
        "rows 0",
        "rows 1 2 3 4 5",
    }


def test_rows_of_what_is_trained_here_wait_for_it(folder: Path) -> None:
    section = "metrics: [{use: accuracy, features: {use: cnn, weights: {recipe: judge.yaml}}}]"
    rows = "[{name: r, of: real}, {name: c, of: reconstruction}, {name: t, of: teacher, sampler: {use: maskgit}}]"
    for name, apart in (("teacher", "rows 0 1"), ("tokenizer", "rows 0")):
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        kept = rows if name == "teacher" else rows.split(", {name: t")[0] + "]"
        measured = folder / f"{name}_measured.yaml"
        measured.write_text(f"{text}eval: {{samples: 4, {section}, rows: {kept}}}\n", encoding="utf-8")
        assert {t for t in planned(folder, f"{name}_measured", workers=1) if t.startswith("rows")} == {apart}


def test_rows_wait_for_the_rewards_that_must_not_judge_them(folder: Path) -> None:
    """Each row asks whether its judge took part in training; the answer needs the reward's weights."""
    other = tiny.SECTIONS.replace("{recipe: judge.yaml}", "{recipe: judge.yaml, set: {seed: 1}}")
    (folder / "judged.yaml").write_text("title: Judged\nbase: terms.yaml\n" + other, encoding="utf-8")
    loaded = recipes.load(folder / "judged.yaml")
    plan = jobs.plan(loaded, folder / "runs" / "judged", folder / "runs", 2, set(), False)
    judges = {job.name for job in plan if "judge.yaml" in job.name}
    assert len(judges) == 2
    rows = [job for job in plan if job.title.startswith("rows")]
    assert rows
    assert all(job.needs >= judges for job in rows)


# Processes


FAKE = """\
#!{python} -ES
import os, signal, sys, time
note, what, seconds = sys.argv[3], sys.argv[4], float(sys.argv[5])
def say(text):
    with open(note, "a") as file:
        file.write(text + "\\n")
def stop(*_):
    say("saved " + what)
    sys.exit(130)
if what != "stubborn":
    signal.signal(signal.SIGTERM, stop)
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
say("begin " + what)
time.sleep(seconds)
say("end " + what)
if what == "faulty":
    print("loading", flush=True)
    print("error: no weights at x;\\ngive others", file=sys.stderr)
    sys.exit(3)
if what == "mute":
    sys.exit(1)
if what == "greedy":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "environment":
    say(" ".join(os.environ[k] for k in ("OMP_NUM_THREADS", "SOFTDIMO_THREADS", "SOFTDIMO_PARENT")))
"""


class Fakes:
    """Jobs whose processes are small scripts that keep a note of what they do."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"
        self.script = folder / "fake"
        self.script.write_text(FAKE.format(python=sys.executable), encoding="utf-8")
        self.script.chmod(0o755)

    def job(self, name: str, seconds: float = 0.0, needs: set[str] | None = None) -> Job:
        return Job(name, [str(self.notes), name, str(seconds)], needs or set(), f"the {name} job")

    def read(self) -> list[str]:
        return self.notes.read_text(encoding="utf-8").splitlines() if self.notes.exists() else []


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes(tmp_path)
    monkeypatch.setattr(sys, "executable", str(made.script))
    return made


def test_jobs_wait_for_what_they_need_and_run_side_by_side(fakes: Fakes) -> None:
    a, b, c, d = (fakes.job(n, 0.2, needs) for n, needs in (("a", None), ("b", None), ("c", {"a"}), ("d", {"b", "c"})))
    jobs.run([a, b, c, d], workers=2, threads=1)
    said = fakes.read()
    assert set(said[:2]) == {"begin a", "begin b"}
    assert said.index("end a") < said.index("begin c")
    assert said[-2:] == ["begin d", "end d"]
    fakes.notes.unlink()
    jobs.run([a, b, c, d], workers=1, threads=1)
    assert fakes.read() == [f"{when} {n}" for n in "abcd" for when in ("begin", "end")]


def test_jobs_know_their_threads_and_their_parent(fakes: Fakes) -> None:
    jobs.run([fakes.job("environment")], workers=1, threads=3)
    assert fakes.read()[-1] == f"3 3 {os.getpid()}"


def test_the_first_failure_stops_the_rest_which_save(fakes: Fakes, capfd: pytest.CaptureFixture[str]) -> None:
    todo = [fakes.job("long", 60), fakes.job("faulty", 0.3), fakes.job("never", 0, {"long"})]
    began = time.monotonic()
    with pytest.raises(SoftdimoError, match=r"^the faulty job: no weights at x;\ngive others$") as caught:
        jobs.run(todo, workers=2, threads=1)
    assert time.monotonic() - began < 20
    assert caught.value.code == 3
    assert "saved long" in fakes.read()
    assert "begin never" not in fakes.read()
    assert capfd.readouterr().err == "loading\n"  # the rest of a job's output is passed on, its error is not said twice


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mute", "the mute job: it ended with code 1. The same command with --resume goes on"),
        (
            "greedy",
            "the greedy job: it was killed (SIGKILL), perhaps for want of memory. "
            "The same command with --resume goes on",
        ),
    ],
)
def test_a_job_that_ends_without_a_word(fakes: Fakes, name: str, message: str) -> None:
    with pytest.raises(SoftdimoError) as caught:
        jobs.run([fakes.job(name)], workers=1, threads=1)
    assert (str(caught.value), caught.value.code) == (message, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_everything_is_saved(fakes: Fakes, number: signal.Signals) -> None:
    def interrupt() -> None:
        while len(fakes.read()) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"everything is saved\. Run the same command with --resume to go on"):
        jobs.run([fakes.job("a", 60), fakes.job("b", 60), fakes.job("c", 60)], workers=2, threads=1)
    thread.join()
    assert signal.getsignal(number) is before
    assert sorted(fakes.read()) == ["begin a", "begin b", "saved a", "saved b"]


def test_a_job_that_does_not_stop_is_killed(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.3)
    began = time.monotonic()
    with pytest.raises(SoftdimoError, match="the mute job"):
        jobs.run([fakes.job("stubborn", 60), fakes.job("mute", 0.3)], workers=2, threads=1)
    assert time.monotonic() - began < 20
    assert sorted(fakes.read()) == ["begin mute", "begin stubborn", "end mute"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children of their parent's death on Linux only")
def test_jobs_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    child = (
        "import signal, sys, time; from pathlib import Path; from softdimo.runs.worker import _die_with_parent\n"
        "def stop(*_): Path('saved').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); _die_with_parent(); Path('ready').touch(); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys; env = os.environ | {'SOFTDIMO_PARENT': str(os.getpid())}\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], env=env, start_new_session=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path)
    wait_for(lambda: (tmp_path / "ready").exists())
    process.kill()
    process.wait()
    wait_for(lambda: (tmp_path / "saved").exists())


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_orphan_does_not_start(tmp_path: Path) -> None:
    if sys.platform == "linux":
        command = [sys.executable, "-m", "softdimo.runs.worker", "ensure", "x.yaml", "runs"]
        done = subprocess.run(command, env=os.environ | {"SOFTDIMO_PARENT": "1"}, cwd=tmp_path, check=False)
        assert done.returncode == 1


# One job


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker's `main` in this process."""
    monkeypatch.setattr(worker, "_die_with_parent", lambda: None)
    monkeypatch.setenv("SOFTDIMO_THREADS", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.usefixtures("at_home")
def test_a_job_says_its_error_and_ends_with_its_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = str(folder / "absent.yaml")
    assert worker.main(["ensure", absent, str(folder / "runs")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {absent}: ")


@pytest.mark.usefixtures("at_home")
def test_a_job_that_crashes_leaves_its_traceback_in_a_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_work", lambda *a: 1 / 0)
    assert worker.main(["ensure", "x.yaml", "runs"]) == 70
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected ZeroDivisionError: division by zero\n")
    assert "Traceback" not in said
    (record,) = tmp_path.glob("softdimo-*.log")
    assert "in main" in record.read_text(encoding="utf-8")
