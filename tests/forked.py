"""Commands in processes of their own. They start at once, forked from one that has imported everything, or `fresh`.

Both are killed, stopped and starved like any other; a fork only saves the seconds of start-up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([
    "tests.forked", "softdimo.cli.main", "softdimo.run", "softdimo.export", "softdimo.report.page", "softdimo.strips",
    "softdimo_plugins.losses.dimo", "softdimo_plugins.losses.gan", "softdimo_plugins.losses.reward",
    "softdimo_plugins.discriminators.teacher_features", "softdimo_plugins.teachers.compact",
    "softdimo_plugins.tokenizers.conv", "softdimo_plugins.features.cnn", "softdimo_plugins.data.digits",
    "softdimo_plugins.data.folder", "softdimo_plugins.samplers.maskgit", "softdimo_plugins.samplers.one_step",
    "softdimo_plugins.rewards.class_log_prob", "softdimo_plugins.metrics.accuracy",
    "softdimo_plugins.search.best_of_n", "torch._dynamo",
])  # fmt: skip


def forks() -> multiprocessing.context.ForkServerContext:
    """What starts processes. Its server imports from where it is started: here, whatever folder a test is in."""
    with contextlib.chdir(Path(__file__).parents[1]):
        forkserver.ensure_running()
    return _FORKS


@dataclass
class Command:
    """A running command line."""

    process: Any
    output: Path

    @property
    def code(self) -> int | None:
        """Exit code; minus the signal that killed it; None while it runs."""
        fresh = isinstance(self.process, subprocess.Popen)
        return self.process.poll() if fresh else self.process.exitcode  # type: ignore[no-any-return]

    @property
    def said(self) -> str:
        """What it printed, errors too."""
        return self.output.read_text(encoding="utf-8")

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """Wait for the end; the exit code."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            assert time.monotonic() < deadline, f"still running after {seconds} s: {self.said}"
            time.sleep(0.002)
        return self.code

    def until(self, what: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something holds while it runs."""
        deadline = time.monotonic() + seconds
        while not what():
            assert self.code is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.002)


def start(
    arguments: Sequence[object],
    output: Path,
    prelude: str = "",
    environment: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> Command:
    """Start `softdimo ARGUMENTS`; `prelude` is code that runs first (of a fork). What is printed lands in a file."""
    given = {"OMP_NUM_THREADS": "1"} | dict(environment or {})
    words = [str(a) for a in arguments]
    if fresh:
        with output.open("w") as file:
            command = [sys.executable, "-m", "softdimo", *words]
            return Command(subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | given), output)
    process = forks().Process(target=_run, args=(words, str(output), prelude, given))
    output.touch()
    process.start()
    return Command(process, output)


def _run(arguments: list[str], output: str, prelude: str, environment: dict[str, str]) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(environment)
    sys.path[:0] = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.argv, tempfile.tempdir = ["softdimo", *arguments], None
    exec(prelude, {})
    from softdimo.cli.main import main

    sys.exit(main(arguments))
