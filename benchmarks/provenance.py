"""What every figure of a benchmark depends on, and the file that it lands in."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from softdimo.files import write_json
from softdimo.runs.folder import environment

RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, Any]:
    """Versions, commit (with + when files differ from it), processor and its widest vector instructions, threads."""
    found = environment([])
    found.pop("command")  # it may name folders of the machine
    can = torch.backends.cpu.get_cpu_capability()
    return found | {"processor": _processor(), "instructions": can, "threads": torch.get_num_threads()}


def write_result(name: str, result: Mapping[str, Any]) -> Path:
    """Write `results/<name>.json`, atomically."""
    path = RESULTS / f"{name}.json"
    write_json(path, result)
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
