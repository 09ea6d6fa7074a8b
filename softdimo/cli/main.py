"""`softdimo`: the command line. Errors for people go to stderr with an exit code; others leave a traceback file."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from softdimo import API_VERSION, __version__
from softdimo.cli import commands, plugins
from softdimo.errors import SoftdimoError

CRASH = 70
"""Exit code of a fault in softdimo itself, or in a plugin."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class _Group(TyperGroup):
    """Ctrl-C means exit code 130 whatever typer makes of it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Group,
    help="One-step generators from masked diffusion image models: Di[M]O and Soft-Di[M]O.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
commands.add(app)
app.add_typer(plugins.app, name="plugins", rich_help_panel="Plugins")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"softdimo {__version__} (plugin interface {API_VERSION})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. `SOFTDIMO_DEBUG=1` prints tracebacks."""
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return code


def _run(argv: Sequence[str] | None) -> int:
    debug = os.environ.get("SOFTDIMO_DEBUG", "") not in ("", "0")
    try:
        app(args=None if argv is None else list(argv), prog_name="softdimo")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SoftdimoError as error:
        if debug:
            traceback.print_exc()
        print("error: " + str(error).replace("\n", "\n       "), file=sys.stderr)
        return error.code
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        what = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"error: unexpected {what[:400]}\n       traceback in {record()}", file=sys.stderr)
        return CRASH
    return 0


def record() -> str:
    """Write the current traceback to a file of its own."""
    handle, path = tempfile.mkstemp(prefix=time.strftime("softdimo-%Y%m%d-%H%M%S-"), suffix=".log", text=True)
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"softdimo {__version__}, python {sys.version}\n{' '.join(sys.argv)}\n\n{traceback.format_exc()}")
    return path


if __name__ == "__main__":
    sys.exit(main())
