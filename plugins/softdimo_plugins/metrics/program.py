"""Programs of another environment that score images: how they are started, asked and believed.

A program is called as `<command> REQUEST ANSWER`, two paths of JSON files. It reads

    {"version": 1, "layout": "images", "folder": "/where/images/are",
     "images": [{"file": "00000.png", "prompt": "...", "label": -1, "seed": 0, "metadata": {...}}, ...]}

and writes

    {"provenance": {"scorer": "1.2", ...}, "numbers": {"name": 0.5}, "images": {"00000.png": {"name": 0.5}}}

`provenance`, numbers and text by name, must say all that its numbers depend on: versions, hashes of weights. A request
without images asks for that alone, before anything is drawn. Which of `numbers` (of all images together) and `images`
(of each by itself) is wanted is up to the metric.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from softdimo.errors import PluginError

VERSION = 1
TAIL = 2000
"""Characters of a failed program's words that are shown."""
GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL."""
Provenance = dict[str, str | int | float]


@dataclass(frozen=True)
class Program:
    """A command with a limit in seconds."""

    argv: tuple[str, ...]
    timeout: float

    def present(self) -> None:
        """PluginError where there is no such program."""
        if shutil.which(self.argv[0]) is None:
            raise PluginError(
                f"command: no program `{self.argv[0]}` can be started here; install it, or write its whole path "
                "(a path relative to the recipe begins with ./ or ../)"
            )

    def provenance(self) -> Provenance:
        """What the program's numbers depend on, by its own word; asked once in a process."""
        return dict(_provenance(self))

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer, whose provenance must be the one that it gave without images.

        Raises PluginError where it cannot be started, fails, takes too long, or answers something else.
        """
        answer = self._ask({"version": VERSION, **request})
        if request["images"] and (told := _told(answer, self)) != (known := self.provenance()):
            raise self.fault(f"its provenance was {known} before, and is {told} now: was it changed?")
        return answer

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="softdimo-") as name:
            folder = Path(name)
            question, answer = folder / "request.json", folder / "answer.json"
            question.write_text(json.dumps(request, ensure_ascii=False, indent=1), encoding="utf-8")
            self._run([*self.argv, str(question), str(answer)], folder)
            try:
                found = json.loads(answer.read_text(encoding="utf-8"), parse_constant=float)
            except FileNotFoundError as error:
                raise self.fault("it ended well, but wrote no answer to the path of its last argument") from error
            except (ValueError, OSError) as error:
                raise self.fault(f"its answer is no JSON ({error})") from error
        if not isinstance(found, dict):
            raise self.fault(f"its answer must be a mapping, not {type(found).__name__}")
        return found

    def _run(self, argv: list[str], folder: Path) -> None:
        """Run to the end, in a process group of its own, which ends with us."""
        said = {name: folder / name for name in ("stderr", "stdout")}
        with said["stderr"].open("wb") as errors, said["stdout"].open("wb") as output:
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
                )
            except OSError as error:
                raise self.fault(f"it cannot be started: {error.strerror or error}") from error
            try:
                code = process.wait(self.timeout)
            except subprocess.TimeoutExpired as error:
                _end(process)
                raise self.fault(f"it took longer than timeout: {self.timeout:g} seconds", said) from error
            except BaseException:
                _end(process)
                raise
        if code != 0:
            how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
            raise self.fault(f"it failed with {how}", said)

    def fault(self, what: str, said: Mapping[str, Path] | None = None) -> PluginError:
        """An error that names the command and says `what` is wrong, with its last words: the end of a file."""
        tail = ""
        for name, path in (said or {}).items():
            words = path.read_bytes()[-TAIL:].decode("utf-8", "replace").strip()
            tail = tail or (f"\nthe end of its {name}:\n{words}" if words else "")
        return PluginError(f"the command `{' '.join(self.argv)}`: {what}{tail}")


@lru_cache(maxsize=32)
def _provenance(program: Program) -> tuple[tuple[str, str | int | float], ...]:
    return tuple(_told(program._ask({"version": VERSION, "layout": "", "folder": "", "images": []}), program).items())


def _told(answer: Mapping[str, Any], program: Program) -> Provenance:
    """The provenance in an answer. PluginError where there is none."""
    found = answer.get("provenance")
    plain = isinstance(found, dict) and all(
        isinstance(key, str) and isinstance(value, str | int | float) and value == value for key, value in found.items()
    )
    if not found or not plain:
        raise program.fault("its answer needs `provenance`: numbers and text by name that say what its scores rest on")
    return dict(sorted(found.items()))


def numbers(found: Any, program: Program, where: str) -> dict[str, float]:
    """Finite numbers by name, one or more. PluginError for anything else; `where` in the answer it is."""
    if not isinstance(found, dict) or not found:
        raise program.fault(f"its answer needs {where}: numbers by name")
    for name, value in found.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise program.fault(f"{where}: `{name}` must be a finite number, not {value!r}")
    return {str(name): float(value) for name, value in found.items()}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a program and all that it started, which may be deaf to the first signal."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
