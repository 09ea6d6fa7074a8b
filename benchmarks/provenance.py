"""What every figure of a benchmark depends on, and the file that it lands in."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import softdimo
from softdimo.files import write_text

RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, Any]:
    """Versions, commit (with + when files differ from it), processor, threads."""
    return {
        "softdimo": softdimo.__version__,
        "git": _git(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} x {_processor()}",
        "threads": torch.get_num_threads(),
    }


def write_result(name: str, result: Mapping[str, Any]) -> Path:
    """Write `results/<name>.json`, atomically."""
    path = RESULTS / f"{name}.json"
    write_text(path, json.dumps(result, indent=1) + "\n")
    return path


def _git() -> str:
    def ask(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    commit = ask("rev-parse", "--short=12", "HEAD")
    return commit + ("+" if commit and ask("status", "--porcelain", "--untracked-files=no") else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
