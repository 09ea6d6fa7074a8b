"""One line of progress: iterations, it/s, img/s, each loss, time left. Plain lines when the output is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class Line:
    """Progress of one run; `quiet` prints nothing (ranks other than 0)."""

    def __init__(self, title: str, total: int, batch: int, quiet: bool = False, plain_seconds: float = 15.0) -> None:
        self.title, self.total, self.batch, self.quiet, self.plain_seconds = title, total, batch, quiet, plain_seconds
        self.console = Console(stderr=True)
        self._begin: float | None = None
        self._first = 0
        self._said = time.monotonic()
        self._losses, self._so_far = "", str(total)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Line:
        if not self.quiet and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=18), TextColumn("{task.fields[status]}"))
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task(self.title, total=self.total, status="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if not self.quiet and error[0] is None and self._begin is not None:
            text = f"{self.title}: {self._so_far} iterations, {self._losses}"
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def end(self, done: int, why: str) -> None:
        """Say that training ends after `done` iterations, and why."""
        self._so_far = f"{done} of {self.total}"
        if not self.quiet:
            text = f"{self.title}: training ends after iteration {done} of {self.total}: {why}"
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, done: int, row: Mapping[str, float] | None) -> None:
        """Show that `done` iterations are finished; `row` is the newest log row."""
        now = time.monotonic()
        if self._begin is None:
            self._begin, self._first = now, done
        if self.quiet:
            return
        if row is not None:
            shown = {k: v for k, v in row.items() if k == "loss" or k.endswith(("/loss", "divergence", "accuracy"))}
            self._losses = "  ".join(f"{k.removesuffix('/loss')} {v:.4g}" for k, v in shown.items())
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, status=self.status(done, now))
        elif now - self._said > self.plain_seconds:
            self._said = now
            self.console.print(f"{self.title}: {self.status(done, now)}", markup=False, highlight=False, soft_wrap=True)

    def status(self, done: int, now: float) -> str:
        """`120/500  6.1 it/s  293 img/s  1:02 left  dimo 0.31`."""
        elapsed = now - (self._begin if self._begin is not None else now)
        rate = (done - self._first) / elapsed if elapsed > 0 else 0.0
        left = (
            f"{int((self.total - done) / rate) // 60}:{int((self.total - done) / rate) % 60:02d} left" if rate else ""
        )
        speed = f"{rate:.1f} it/s  {rate * self.batch:.0f} img/s" if rate else ""
        return "  ".join(part for part in (f"{done}/{self.total}", speed, left, self._losses) if part)
