"""`report.html`: a run on one self-contained page."""

from __future__ import annotations

from pathlib import Path

from softdimo.errors import CheckpointError

__all__ = ["write"]


def write(run: Path) -> Path:
    """Write `report.html` into the run folder, from what stands there, and return its path.

    Raises CheckpointError where `run` is no run folder, or a file in it is damaged.
    """
    from softdimo.files import write_text
    from softdimo.report.folder import Folder
    from softdimo.report.page import page

    run = Path(run)
    if not (run / "recipe.yaml").is_file():
        raise CheckpointError(
            f"{run} is not a run folder (it has no recipe.yaml); give the folder that `softdimo run` wrote"
        )
    path = run / "report.html"
    write_text(path, page(Folder(run)))
    return path
