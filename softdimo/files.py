"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from softdimo.errors import WeightsError, WriteError
from softdimo.math.digest import digest_state

PARTIAL = ".partial"
"""Suffix of what is being written; hidden, and worthless once its writer is gone."""
DIGEST = "softdimo.sha256"
"""Metadata of the files that `save_weights` writes."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """While `path` is written: a disk that is full or read-only, or a folder that is not ours, is a WriteError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise WriteError(
            f"cannot write {path}: {reason}; what was saved before is untouched. Mend that, then run the same command "
            "again (an unfinished run: with --resume)"
        ) from error


def _reason(error: BaseException) -> str | None:
    """What the system said; libraries wrap it in errors of their own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        return str(error).rpartition("I/O error: ")[2].partition(" (os error")[0]
    return _reason(error.__context__) if isinstance(error.__context__, OSError) else None


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed over it when the block ends well, removed when it does not.

    WriteError where that cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what writers that were killed left half-written anywhere below `folder`; nobody may be writing there."""
    for path in folder.rglob(f".*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=False, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a state dict as safetensors with its digest, atomically."""
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    with atomic(path) as temporary:
        save_file(plain, temporary, metadata={"format": "pt", DIGEST: digest_state(plain)} | (metadata or {}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; nothing in it can run code. One that `save_weights` wrote is checked by its digest."""
    if not path.is_file():
        raise WeightsError(f"no weights at {path}")
    remedy = "delete it, and make or fetch it again (`softdimo run ... --resume` makes a run's own)"
    try:
        with safe_open(path, "pt") as file:
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (not a dict)
            digest = (file.metadata() or {}).get(DIGEST)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}; {remedy}") from error
    if digest not in (None, digest_state(state)):
        raise WeightsError(f"{path} was changed after it was written; {remedy}")
    return state


def load_strict(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load every key or none; names what is missing, unexpected, or of another shape."""
    wanted = module.state_dict()
    faults = [f"missing: {k}" for k in wanted if k not in state]
    faults += [f"unexpected: {k}" for k in state if k not in wanted]
    faults += [
        f"shape of {k}: {tuple(state[k].shape)} in the file, {tuple(v.shape)} in the recipe's network"
        for k, v in wanted.items()
        if k in state and v.shape != state[k].shape
    ]
    if faults:
        shown = "\n  ".join(faults[:8] + ([f"... and {len(faults) - 8} more"] if len(faults) > 8 else []))
        raise WeightsError(f"{path} does not fit {type(module).__name__}:\n  {shown}")
    module.load_state_dict(state)
