"""What a recipe needs from other recipes, and running independent parts of a run side by side on a CPU.

Small networks use one core well and two badly, so on a CPU a run is split into jobs, each a process with its share of
the cores: other recipes' trainings, this recipe's training, rows of the table. On a GPU all runs in one process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from softdimo.runs import measure
from softdimo import recipe as recipes
from softdimo.errors import Interrupted, SoftdimoError
from softdimo.runs.folder import RECIPE
from softdimo.recipe import Loaded, Recipe
from softdimo.recipe.model import Row
from softdimo.recipe.shrink import walk
from softdimo.spec import RecipeRef, Settings

PATIENCE = 60.0
"""Seconds that interrupted jobs get to save."""


@dataclass
class Need:
    """Another recipe that must have run, and those that it needs itself (paths)."""

    ref: RecipeRef
    loaded: Loaded
    needs: set[str] = field(default_factory=set)
    """Keys of their references."""


def references(settings: Settings) -> dict[str, RecipeRef]:
    """References to other recipes inside settings, in order, by key."""
    return {s.key: s for _, s in walk(settings) if isinstance(s, RecipeRef)}


def for_training(recipe: Recipe) -> dict[str, RecipeRef]:
    """What `train:` needs: everything but the rows and rewards of `eval:` and `search:`."""
    return references(recipe.model_copy(update={"eval": None, "search": None}))


def needed(loaded: Loaded) -> dict[str, Need]:
    """Every recipe that must run before this one is whole, by reference, dependencies first."""
    found: dict[str, Need] = {}

    def visit(ref: RecipeRef) -> None:
        if ref.key in found:
            return
        other = recipes.load_ref(ref, loaded.smoke)
        inner = for_training(other.recipe)
        for reference in inner.values():
            visit(reference)
        found[ref.key] = Need(ref, other, set(inner))

    for reference in references(loaded.recipe).values():
        visit(reference)
    return found


@dataclass
class Job:
    """One process: arguments of `python -m softdimo.runs.worker`, and the jobs that must end before it starts."""

    name: str
    arguments: Sequence[str]
    needs: set[str]
    title: str


def plan(
    loaded: Loaded, folder: Path, runs: Path, workers: int, cached: set[str], trained: bool, measured: bool = False
) -> list[Job]:
    """The jobs of a run: other recipes that are not `cached`, its own training, rows that need nothing it trains.

    Those that most others wait for come first.
    """
    others, resolved = needed(loaded), str(folder / RECIPE)
    jobs = []
    if loaded.recipe.train is not None and not trained:
        needs = set(for_training(loaded.recipe)) - cached
        jobs.append(Job("train", ["train", resolved, str(folder)], needs, "this run"))
    for key, need in others.items():
        if key not in cached:
            arguments = ["ensure", need.ref.recipe, str(runs), *need.ref.overrides]
            jobs.append(Job(key, arguments, need.needs - cached, need.loaded.path.stem))
    if loaded.recipe.eval is not None and not measured:
        table, players = loaded.recipe.eval, measure.needed_to_refuse(loaded)
        for rows in _shares(loaded.recipe, table.rows, workers):
            part = table.model_copy(update={"rows": tuple(table.rows[i] for i in rows)})
            base = loaded.recipe.model_copy(update={"train": None, "search": None, "eval": part})
            needs = (set(references(base)) | players) - cached
            if _own(table.rows[rows[0]]):
                needs.add("train")
            numbers = [str(i) for i in rows]
            shown = "rows " + " ".join(numbers)
            jobs.append(Job(shown, ["rows", resolved, str(folder), *numbers], needs, shown))
    for job in jobs:
        job.needs &= {other.name for other in jobs}
    return sorted(jobs, key=lambda job: -_height(job.name, jobs))


def _height(name: str, jobs: Sequence[Job]) -> int:
    """Length of the longest chain of jobs that wait for this one."""
    return 1 + max((_height(job.name, jobs) for job in jobs if name in job.needs), default=0)


def _shares(recipe: Recipe, rows: Sequence[Row], workers: int) -> list[list[int]]:
    """Rows in groups of about the same cost, apart from those of a teacher or tokenizer that this recipe trains.

    Rows with weights of their own wait for other recipes' students, and those of this recipe's student for its
    training, so they do not share a group with those that can be measured as soon as there is a teacher.
    """
    trained = recipe.train.network if recipe.train is not None else None
    cost = {
        i: len(row.swept()) * (row.sampler.passes() if row.sampler is not None else 1.0)  # type: ignore[attr-defined]
        for i, row in enumerate(rows)
        if _stands_alone(row, trained)
    }
    early: list[list[int]] = [[] for _ in range(workers)]
    for i in sorted((i for i in cost if rows[i].weights is None and not _own(rows[i])), key=lambda i: -cost[i]):
        min(early, key=lambda group: sum(cost[j] for j in group)).append(i)
    late = [i for i in cost if rows[i].weights is not None]
    own = [i for i in cost if _own(rows[i])]
    return [sorted(group) for group in (*early, late, own) if group]


def _own(row: Row) -> bool:
    """Whether a row is of the student that the recipe itself trains."""
    return row.of == "student" and row.weights is None


def _stands_alone(row: Row, trained: str | None) -> bool:
    """Whether a row can be measured apart from the recipe's own training (of the network `trained`)."""
    if row.of == "real" or trained is None:
        return True
    if row.of == "reconstruction":
        return trained != "tokenizer"
    return trained == "student"


def run(jobs: Sequence[Job], workers: int, threads: int) -> None:
    """Run jobs, earlier ones first where there is a choice, at most `workers` at a time.

    The first failure stops the rest (they save) and is raised with the job's own message. A signal is passed on.
    """
    waiting, done = list(jobs), set[str]()
    running: dict[str, _Process] = {}
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "SOFTDIMO_THREADS": str(threads),
        "SOFTDIMO_PARENT": str(os.getpid()),
    }
    with _signals() as stop:
        while waiting or running:
            for job in [j for j in waiting if j.needs <= done][: workers - len(running)]:
                waiting.remove(job)
                running[job.name] = _Process(job, environment)
            for name, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[name]
                if code != 0:
                    _end(running)
                    raise process.error(code)
                done.add(name)
            if stop.is_set():
                _end(running)
                raise Interrupted("stopped; everything is saved. Run the same command with --resume to go on")
            time.sleep(0.05)


class _Process:
    """A running job; its errors are kept, its other output is passed on."""

    def __init__(self, job: Job, environment: dict[str, str]) -> None:
        self.job = job
        self._said: list[str] = []
        command = [sys.executable, "-m", "softdimo.runs.worker", *job.arguments]
        self.popen = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip
        assert self.popen.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.popen.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            if line.startswith("error: "):
                self._said.append(line.removeprefix("error: "))
            elif self._said:
                self._said.append(line)
            else:
                print(line, end="", file=sys.stderr, flush=True)

    def poll(self) -> int | None:
        """Exit code when the process has ended and its output is read."""
        code = self.popen.poll()
        if code is not None:
            self._reader.join(5)
            if self.popen.stdout is not None:
                self.popen.stdout.close()
        return code

    def error(self, code: int) -> SoftdimoError:
        """What went wrong, as the job said it."""
        text = "".join(self._said).strip() or f"{_ending(code)}. The same command with --resume goes on"
        found = SoftdimoError(f"{self.job.title}: {text}")
        found.code = code if 0 < code < 128 else 1
        return found


def _ending(code: int) -> str:
    """In words, how a process that said nothing ended."""
    if code >= 0:
        return f"it ended with code {code}"
    name = signal.Signals(-code).name
    return f"it was killed ({name})" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def _end(running: dict[str, _Process]) -> None:
    """Ask every running job to save and stop, and wait for it."""
    for process in running.values():
        with contextlib.suppress(ProcessLookupError):
            process.popen.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    for process in running.values():
        try:
            process.popen.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()
        process.poll()


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {s: signal.signal(s, lambda *_: event.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parts_folder(folder: Path) -> Path:
    """Where jobs leave rows of the table for the run to gather."""
    return folder / ".parts"
