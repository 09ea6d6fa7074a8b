"""The loop around an algorithm: data, log, checkpoints, samples, signals. It owns the iteration counter."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from lightning_fabric import Fabric

from softdimo.engine import checkpoint, rng
from softdimo.engine.algorithm import Algorithm
from softdimo.engine.health import health
from softdimo.engine.log import Log
from softdimo.engine.progress import Line
from softdimo.errors import CheckpointError, Interrupted, TrainingError
from softdimo.files import write_text
from softdimo.kinds import Cursor


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
        """Train to the end, or until a signal: then save and raise `Interrupted`."""
        log = Log(self.folder, self.log_every, self.tensorboard and self.fabric.is_global_zero)
        first = self._resume(log) if resume else 0
        if self.fabric.is_global_zero:
            log.resume(first) if resume else log.path.unlink(missing_ok=True)
        saved = time.monotonic()
        title = self.title if not first else f"{self.title} (resumed at {first})"
        quiet = not self.fabric.is_global_zero
        try:
            with _stopping() as stop, Line(title, self.iterations, self.batch_size, quiet) as line:
                for iteration in range(first, self.iterations):
                    real = next(self.stream).to(self.fabric.device)
                    row = log.add(iteration, self.algorithm.step(iteration, real))
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
                        self.on_sample(done)
        except TrainingError as error:
            kept = checkpoint.complete(self.folder / "checkpoints")
            last = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"
            raise TrainingError(f"{error}; {last}. Lower the learning rate, or clip harder, and run again") from error
        if first < self.iterations:
            self._save(self.iterations, log)

    def _any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""
        if self.fabric.world_size == 1:
            return flag
        votes = self.fabric.all_reduce(torch.tensor(float(flag), device=self.fabric.device), reduce_op="sum")
        return bool(torch.as_tensor(votes).item() > 0)

    def _save(self, done: int, log: Log) -> None:
        folder = self.folder / "checkpoints"
        state = {"recipe": self.recipe_hash, "algorithm": self.algorithm.state_dict(), "log": log.state_dict()}
        mine = {"rng": rng.state(self.generator), "stream": self.stream.state_dict()}
        checkpoint.save(folder, done, state, mine, self.fabric)
        if self.fabric.is_global_zero:
            checkpoint.prune(folder, self.keep)

    def _resume(self, log: Log) -> int:
        found = checkpoint.complete(self.folder / "checkpoints")
        if not found:
            return 0
        iteration, state, mine = checkpoint.load(found[-1], self.fabric)
        if state["recipe"] != self.recipe_hash:
            raise CheckpointError(
                f"{found[-1]} was written by another recipe than this one; "
                "use another --out, or --fresh to start this folder over"
            )
        self.algorithm.load_state_dict(state["algorithm"])
        log.load_state_dict(state["log"])
        self.stream.load_state_dict(mine["stream"])
        if "rng" in mine:
            rng.restore(self.generator, mine["rng"])
        return iteration

    def _how_to_resume(self, done: int) -> str:
        return (
            f"stopped after iteration {done} of {self.iterations}; everything is saved in {self.folder}. "
            "Run the same command with --resume to go on"
        )


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second signal of the same kind acts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
