"""What the command line says of an error, whoever made it. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator

from softdimo import __version__, registry
from softdimo.errors import CrashError, SoftdimoError


def explain(error: Exception) -> tuple[int, str]:
    """Exit code and message. What no user can mend names the code that raised, and a file with its traceback.

    To be called while the error is being handled.
    """
    if isinstance(error, SoftdimoError) and not isinstance(error, CrashError):
        return error.code, str(error)
    left = f" {error}" if isinstance(error, CrashError) else ""
    cause = (error.__cause__ or error) if isinstance(error, CrashError) else error
    what = " ".join(f"{type(cause).__name__}: {cause}".split())[:400]
    return CrashError.code, f"unexpected {what}{left}\nraised in {blame(cause)}\ntraceback in {record()}"


def blame(error: BaseException) -> str:
    """Whose code raised, with file and line: the innermost frame of a component, or of softdimo."""
    found, owners = "softdimo", {"softdimo": "softdimo"}
    for kind in registry.KINDS:
        owners |= {entry.module.partition(".")[0]: registry.distribution(entry) for entry in registry.installed(kind)}
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in owners:
            found = f"{owners[package]}, {frame.f_code.co_filename}:{line}"
    return found


def record() -> str:
    """Write the current traceback to a file of its own; returns its path, or why there is none."""
    try:
        handle, path = tempfile.mkstemp(prefix=time.strftime("softdimo-%Y%m%d-%H%M%S-"), suffix=".log", text=True)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(
                f"softdimo {__version__}, python {sys.version}\n{' '.join(sys.argv)}\n\n{traceback.format_exc()}"
            )
    except OSError as error:
        return f"no file, none can be written ({error.strerror or error}); SOFTDIMO_DEBUG=1 prints it"
    return path


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """What is stopped by SIGTERM ends as after Ctrl-C. A training takes both signals itself, and saves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def let_rank_zero_speak(seconds: float = 15.0) -> None:
    """Wait, on other ranks that have not met yet: torchrun and srun end them when rank 0 stops at the same fault."""
    torch = sys.modules.get("torch")
    met = torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
    if not met and int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0")))) > 0:
        try:
            time.sleep(seconds)
        except KeyboardInterrupt:
            sys.exit(1)
