"""`softdimo`: the command line. Errors for people go to stderr with an exit code; others leave a traceback file."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from softdimo import API_VERSION, __version__
from softdimo.cli import commands, plugins
from softdimo.cli.crash import explain, let_rank_zero_speak, sigterm_as_ctrl_c
from softdimo.errors import Elsewhere, Interrupted

CODES = (
    "Exit codes: 0 done, 1 another error, 2 recipe or plugin, 3 weights, data or run folder, 4 training cannot go on, "
    "5 a file cannot be written, 70 softdimo or a plugin is broken, 130 stopped (Ctrl-C, SIGTERM)."
)


class _Group(TyperGroup):
    """Ctrl-C means the exit code of `Interrupted`, whatever typer makes of it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(Interrupted.code) from None


app = typer.Typer(
    cls=_Group,
    help="One-step generators from masked diffusion image models: Di[M]O and Soft-Di[M]O.",
    epilog=CODES,
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
        with sigterm_as_ctrl_c():
            code = _run(argv)
        if argv is None and threading.current_thread() is threading.main_thread():
            # what is done is done, while the interpreter takes itself down
            signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        return Interrupted.code
    except BrokenPipeError:
        raise
    except Elsewhere as stop:
        return stop.code
    except Exception as error:
        if debug:
            traceback.print_exc()
        let_rank_zero_speak()
        code, text = explain(error)
        print("error: " + text.replace("\n", "\n       "), file=sys.stderr)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
