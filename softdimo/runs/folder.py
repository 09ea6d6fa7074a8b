"""The run folder: who may write in it, what stands in it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from softdimo import __version__
from softdimo.errors import CheckpointError
from softdimo.files import sweep, write_json, write_text, writing

RECIPE, LOCK = "recipe.yaml", "lock.json"


class RunFolder:
    """A folder held by one process at a time, until that process ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: IO[str] | None = None

    def hold(self, waiting: Callable[[], None] | None = None) -> None:
        """Take the folder. While another run holds it: refuse, or with `waiting` (which is called once) wait."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._held = (self.path / ".held").open("w")
        try:
            if not self._lock():
                if waiting is None:
                    raise CheckpointError(f"another run is writing in {self.path}; wait for it, or give another --out")
                waiting()
                while not self._lock():
                    time.sleep(0.2)
        except OSError as error:
            self.release()
            raise CheckpointError(
                f"cannot lock {self.path / '.held'}: {error.strerror or error}; give an --out on a local disk"
            ) from error
        except BaseException:
            self.release()
            raise

    def _lock(self) -> bool:
        """Whether the lock is ours now; the system frees it when the process ends, however it ends."""
        assert self._held is not None
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give the folder back."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def recorded_hash(self) -> str | None:
        """Hash of the recipe that this folder was started with, if any. CheckpointError where the lock is damaged."""
        path = self.path / LOCK
        if not path.exists():
            return None
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["recipe"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged, so it does not say whose run this is; restore it, or start the run over (--fresh)"
            ) from error

    def clear(self) -> None:
        """Delete what an earlier run left, and nothing that a run does not write."""
        for name in ("checkpoints", "samples", "critics", "tensorboard", "search", ".parts", "eval-parts"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for pattern in (
            "*.safetensors",
            "log.csv",
            "health.txt",
            "ended.json",
            "eval.json",
            "search.json",
            "report.html",
            "timing.json",
            RECIPE,
            LOCK,
        ):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)
        sweep(self.path)

    def describe(self, recipe_yaml: str, recipe_hash: str, distributions: list[str], keep: bool = False) -> None:
        """Write the resolved recipe and the lock file; with `keep`, a lock file that is there stays."""
        write_text(self.path / RECIPE, recipe_yaml)
        if not (keep and (self.path / LOCK).is_file()):
            write_json(self.path / LOCK, {"recipe": recipe_hash} | environment(distributions))


def environment(distributions: list[str]) -> dict[str, Any]:
    """Versions that a result depends on."""
    fabric = ("lightning-fabric", "pytorch-lightning")  # whichever brought Fabric
    names = sorted({"softdimo", "torch", *(n for n in fabric if _version(n)), "numpy", *distributions})
    return {
        "softdimo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git(),
        "distributions": {n: _version(n) for n in names},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git() -> str | None:
    """Commit of the source tree that softdimo runs from, with `+` when it has changes."""
    here = Path(__file__).resolve().parent

    def ask(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        return ask("rev-parse", "--short=12", "HEAD") + ("+" if ask("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
