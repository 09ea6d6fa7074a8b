"""One job of a run, in its own process: `python -m softdimo.runs.worker ensure|train|rows ...` (see `softdimo.runs.jobs`)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the job; errors go to stderr as `error: ...`, their code is the exit code."""
    _die_with_parent()
    from softdimo.cli.crash import explain, sigterm_as_ctrl_c
    from softdimo.errors import Interrupted

    try:
        with sigterm_as_ctrl_c():
            _work(arguments[0], arguments[1], Path(arguments[2]), arguments[3:])
    except KeyboardInterrupt:
        return Interrupted.code
    except Exception as error:
        code, text = explain(error)
        print(f"error: {text}", file=sys.stderr, flush=True)
        return code
    return 0


def _work(what: str, recipe: str, folder: Path, rest: list[str]) -> None:
    from softdimo.runs import measure
    from softdimo import recipe as recipes
    from softdimo.runs.folder import RunFolder
    from softdimo.runs.jobs import parts_folder
    from softdimo.run import start_session

    threads = [f"hardware.threads={os.environ['SOFTDIMO_THREADS']}", "hardware.jobs=1"]
    quiet = lambda text: None  # noqa: E731
    if what == "ensure":
        loaded = recipes.load(recipe, [*rest, *threads])
        session = start_session(loaded, folder, say=quiet)
        session.ensure(loaded)
        return
    loaded = recipes.load(recipe, threads)
    session = start_session(loaded, folder.parent, say=quiet)
    parts = session.parts(loaded)
    if what == "train":
        session.train(loaded, RunFolder(folder), parts, resume=True)
    else:
        chosen = [int(r) for r in rest if r.isdigit()]
        settings = loaded.recipe.eval
        assert settings is not None
        subset = settings.model_copy(update={"rows": tuple(settings.rows[i] for i in chosen)})
        parts.recipe = loaded.recipe.model_copy(update={"eval": subset})
        name = "eval-" + "-".join(map(str, chosen)) + ".json"
        measure.evaluate_section(loaded, folder, parts, quiet, path=parts_folder(folder) / name)


def _die_with_parent() -> None:
    """On Linux: when the run that started this job is killed, the job gets SIGTERM (it saves and stops)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() != int(os.environ["SOFTDIMO_PARENT"]):  # it was killed before this line
            sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
