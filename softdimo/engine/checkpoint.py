"""Checkpoints are complete or ignored: written aside, hashed, marked, renamed; the newest complete one is resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from softdimo.errors import CheckpointError
from softdimo.files import sha256, write_json

_NAME = re.compile(r"iter-(\d{8})")
MARKER = ".complete"


def save(folder: Path, iteration: int, state: Mapping[str, Any], rank_state: Mapping[str, Any], fabric: Fabric) -> Path:
    """Write `folder/iter-XXXXXXXX`. All ranks enter; rank 0 writes the shared state and, last, the marker."""
    final = folder / f"iter-{iteration:08d}"
    partial = folder / f".{final.name}.partial"
    try:
        if fabric.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        fabric.barrier("checkpoint folder")
        torch.save(dict(rank_state), partial / f"rank-{fabric.global_rank}.pt")
        if fabric.is_global_zero:
            torch.save(dict(state), partial / "state.pt")
        fabric.barrier("checkpoint files")
        if fabric.is_global_zero:
            files = sorted(p for p in partial.iterdir() if p.suffix == ".pt")
            for path in files:
                _flush(path)
            manifest = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
            write_json(partial / MARKER, {"iteration": iteration, "world": fabric.world_size, "files": manifest})
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _flush(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"could not write the checkpoint {final}: {error.strerror or error}; earlier checkpoints are untouched"
        ) from error
    fabric.barrier("checkpoint done")
    return final


def _flush(path: Path) -> None:
    """Ask the disk to hold what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / MARKER).is_file()]
    return sorted(found, key=lambda p: p.name)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and partial ones."""
    for path in complete(folder)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def load(path: Path, fabric: Fabric) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Iteration, shared state and this rank's state of a complete checkpoint; verifies every hash first."""
    try:
        manifest = json.loads((path / MARKER).read_text(encoding="utf-8"))
        iteration, world, files = int(manifest["iteration"]), int(manifest["world"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MARKER} is damaged; delete {path} and resume from an earlier one") from error
    for name, expected in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"] or sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is missing or was changed; delete {path} to resume from an earlier one")
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    rank = fabric.global_rank if fabric.world_size == world else 0
    rank_state = torch.load(path / f"rank-{rank}.pt", map_location="cpu", weights_only=True)
    if fabric.world_size != world:
        rank_state.pop("rng", None)  # another number of ranks: the streams are drawn anew, the weights go on
    return iteration, state, rank_state
