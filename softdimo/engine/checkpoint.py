"""Checkpoints are complete or ignored: written aside, hashed, marked, renamed; the newest complete one is resumed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from softdimo.engine.sharding import whole
from softdimo.errors import CheckpointError
from softdimo.files import PARTIAL, sha256, write_json, writing
from softdimo.math.digest import digest_json

_NAME = re.compile(r"iter-(\d{8})")
MARKER = ".complete"


def save(folder: Path, iteration: int, state: Mapping[str, Any], rank_state: Mapping[str, Any], fabric: Fabric) -> Path:
    """Write `folder/iter-XXXXXXXX`. All ranks enter; rank 0 writes the shared state and, last, the marker.

    What the strategy keeps in pieces is put together first, so that any strategy and number of ranks can go on.
    """
    shared = whole(dict(state), keep=fabric.is_global_zero)
    final = folder / f"iter-{iteration:08d}"
    partial = folder / f".{final.name}{PARTIAL}"
    with _removed_on_failure(partial), writing(final):
        if fabric.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        fabric.barrier("checkpoint folder")
        _write(dict(rank_state), partial / f"rank-{fabric.global_rank}.pt")
        if fabric.is_global_zero:
            _write(shared, partial / "state.pt")
        fabric.barrier("checkpoint files")
        if fabric.is_global_zero:
            files = sorted(p for p in partial.iterdir() if p.suffix == ".pt")
            for path in files:
                _flush(path)
            manifest = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
            marker = {"iteration": iteration, "world": fabric.world_size, "files": manifest}
            write_json(partial / MARKER, marker | {"sha256": digest_json(marker)})
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _flush(folder)
    fabric.barrier("checkpoint done")
    return final


@contextlib.contextmanager
def _removed_on_failure(partial: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(state: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # torch's own writer does not tell what the system said
        torch.save(state, file)


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
    for path in folder.glob(f".*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def load(path: Path, fabric: Fabric) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Iteration, shared state and this rank's state of a complete checkpoint; rank 0 verifies every hash first."""
    try:
        manifest = json.loads((path / MARKER).read_text(encoding="utf-8"))
        iteration, world, files = int(manifest["iteration"]), int(manifest["world"]), dict(manifest["files"])
        if manifest.pop("sha256") != digest_json(manifest) or path.name != f"iter-{iteration:08d}":
            raise ValueError("it does not describe this checkpoint")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MARKER} is damaged; delete {path} and resume from an earlier one") from error
    for name, expected in files.items() if fabric.is_global_zero else ():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"] or sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is missing or was changed; delete {path} to resume from an earlier one")
    fabric.barrier("verified")
    # mapped, the file is in memory once for all ranks of a node
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    rank = fabric.global_rank if fabric.world_size == world else 0
    rank_state = torch.load(path / f"rank-{rank}.pt", map_location="cpu", weights_only=True)
    if fabric.world_size != world:
        rank_state.pop("rng", None)  # another number of ranks: the streams are drawn anew, the weights go on
    return iteration, state, rank_state
