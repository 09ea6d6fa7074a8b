"""The loop around an algorithm: data, log, checkpoints, samples, signals. It owns the iteration counter."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from softdimo.engine import checkpoint, rng
from softdimo.engine.algorithm import Algorithm
from softdimo.engine.health import health
from softdimo.engine.log import Log
from softdimo.engine.progress import Line
from softdimo.errors import CheckpointError, CrashError, Interrupted, SoftdimoError, TrainingError
from softdimo.files import write_json, write_text
from softdimo.kinds import Cursor

ENDED = "ended.json"
"""The file that says why a training ended before its last iteration."""


@dataclass
class Loop:
    """Runs `algorithm` for `iterations` over `stream`, inside a run folder."""

    algorithm: Algorithm
    stream: Cursor
    folder: Path
    fabric: Fabric
    generator: torch.Generator
    recipe_hash: str
    title: str
    iterations: int
    batch_size: int
    log_every: int = 10
    sample_every: int = 0
    checkpoint_minutes: float = 3.0
    keep: int = 2
    tensorboard: bool = False
    on_sample: Callable[[int], None] | None = None

    def run(self, resume: bool = False) -> None:
        """Train to the last iteration, or to the algorithm's own end; at a signal save and raise `Interrupted`."""
        first_rank, several = self.fabric.is_global_zero, self.fabric.world_size > 1
        device = self.fabric.device if several else "cpu"
        log = Log(self.folder, self.log_every, self.tensorboard and first_rank, first_rank, device)
        first = self._resume(log) if resume else 0
        if self.fabric.is_global_zero:
            log.resume(first) if resume else log.path.unlink(missing_ok=True)
        saved, done = time.monotonic(), first
        title = self.title if not first else f"{self.title} (resumed at {first})"
        quiet = not self.fabric.is_global_zero
        with _stopping() as stop, Line(title, self.iterations, self.batch_size, quiet) as line:
            for iteration in range(first, self.iterations):
                if self.algorithm.ending:
                    break
                with self._step(iteration):
                    real = next(self.stream).to(self.fabric.device)
                    logs = self.algorithm.step(iteration, real)
                row = log.add(iteration, logs)
                done = iteration + 1
                line.update(done, row)
                if row is not None and not quiet:
                    write_text(self.folder / "health.txt", "\n".join(health(log.rows)) + "\n")
                if self._any(stop.is_set()):
                    self._save(done, log)
                    raise Interrupted(self._how_to_resume(done))
                if self._any(time.monotonic() - saved > 60 * self.checkpoint_minutes) and done < self.iterations:
                    self._save(done, log)
                    saved = time.monotonic()
                if self.on_sample and self.sample_every and done % self.sample_every == 0:
                    with self._step(iteration):
                        self.on_sample(done)
            if self.algorithm.ending and done < self.iterations:
                line.end(done, self.algorithm.ending)
                self._tell_ending(done)
        if first < done:
            self._save(done, log)

    def _tell_ending(self, done: int) -> None:
        """Leave word of a training that ended before its last iteration."""
        if self.fabric.is_global_zero:
            write_json(self.folder / ENDED, {"iterations": done, "of": self.iterations, "why": self.algorithm.ending})

    @contextlib.contextmanager
    def _step(self, iteration: int) -> Iterator[None]:
        """What goes wrong at an iteration says what is left of the training; components may raise anything."""
        try:
            yield
        except TrainingError as error:
            raise TrainingError(
                f"{error}; {self._last()}. Lower the learning rate, or clip harder, and run again"
            ) from error
        except SoftdimoError:
            raise
        except Exception as error:
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise TrainingError(
                    f"there is not enough memory for iteration {iteration}; {self._last()}. Lower train.batch_size, or "
                    "free memory and run the same command with --resume"
                ) from error
            raise CrashError(f"at iteration {iteration}; {self._last()}") from error

    def _last(self) -> str:
        kept = checkpoint.complete(self.folder / "checkpoints")
        return f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"

    def _any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""
        if self.fabric.world_size == 1:
            return flag
        votes = self.fabric.all_reduce(torch.tensor(float(flag), device=self.fabric.device), reduce_op="sum")
        return bool(torch.as_tensor(votes).item() > 0)

    def _save(self, done: int, log: Log) -> None:
        folder = self.folder / "checkpoints"
        state = {"recipe": self.recipe_hash, "algorithm": self.algorithm.state_dict()}
        with self._step(done - 1):
            if self._any(not _finite(state["algorithm"])):
                raise TrainingError(f"the weights are not finite after iteration {done - 1}")
        mine = {"rng": rng.state(self.generator), "stream": self.stream.state_dict(), "log": log.state_dict()}
        checkpoint.save(folder, done, state, mine, self.fabric)
        if self.fabric.is_global_zero:
            checkpoint.prune(folder, self.keep)

    def _resume(self, log: Log) -> int:
        found = self.fabric.broadcast(checkpoint.complete(self.folder / "checkpoints"))
        if not found:
            return 0
        iteration, state, mine = checkpoint.load(found[-1], self.fabric)
        if state["recipe"] != self.recipe_hash:
            raise CheckpointError(
                f"{found[-1]} was written by another recipe than this one; "
                "use another --out, or --fresh to start this folder over"
            )
        self.algorithm.load_state_dict(state["algorithm"])
        log.load_state_dict(mine["log"])
        self.stream.load_state_dict(mine["stream"])
        if "rng" in mine:
            rng.restore(self.generator, mine["rng"])
        return iteration

    def _how_to_resume(self, done: int) -> str:
        return (
            f"stopped after iteration {done} of {self.iterations}; everything is saved in {self.folder}. "
            "Run the same command with --resume to go on"
        )


def _finite(value: Any) -> bool:
    """Whether all numbers of a state are finite (of a sharded tensor: this rank's)."""
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    if isinstance(value, Tensor):
        mine: Tensor = getattr(value, "to_local", lambda: value)()
        return not mine.is_floating_point() or bool(mine.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set. A second Ctrl-C acts as usual; launchers may send SIGTERM twice."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        event.set()
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
