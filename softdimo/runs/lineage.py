"""Where a finished run's networks came from: the runs of the recipes that it names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from softdimo import recipe as recipes
from softdimo.build import PRODUCT, Ensure
from softdimo.errors import CheckpointError, WeightsError
from softdimo.runs.folder import LOCK, RECIPE, RunFolder
from softdimo.recipe import Loaded
from softdimo.spec import RecipeRef

CACHE = "cache"
"""Folder, beside runs, of what several of them need: other recipes' runs, and encodings of prompts."""


def training_hash(loaded: Loaded) -> str:
    """Hash of everything that a recipe's training depends on, files of the user's data among it."""
    return recipes.content_hash(loaded.recipe.model_copy(update={"eval": None, "search": None}), loaded.smoke)


def cache_name(loaded: Loaded) -> str:
    """Name of the folder, below `runs/cache`, of a recipe that is run for another one's sake."""
    return f"{loaded.path.stem}-{training_hash(loaded)[:8]}"


def default_out(loaded: Loaded, runs: Path) -> Path:
    """`runs/<recipe>`, or `runs/<recipe>-smoke`; a run folder's own recipe runs there."""
    if loaded.path.name == RECIPE and (loaded.path.parent / LOCK).is_file():
        return loaded.path.parent
    return runs / (loaded.path.stem + ("-smoke" if loaded.smoke else ""))


def home_of(loaded: Loaded, runs: Path, agree: Callable[[bool], bool] = bool) -> Path:
    """The run folder of a recipe that another one needs.

    That of `softdimo run` where it was finished there with all that its training depends on; else one in `runs/cache`.
    `agree` tells ranks what the first has seen.
    """
    named = default_out(loaded, runs)
    finished = (named / PRODUCT).is_file() and recorded_there(loaded, named)
    return named if agree(finished) else runs / CACHE / cache_name(loaded)


def recorded_there(loaded: Loaded, folder: Path) -> bool:
    """Whether a folder says that it holds a run of just this recipe; one that cannot be read does not."""
    try:
        return RunFolder(folder).recorded_hash() == training_hash(loaded)
    except CheckpointError:
        return False


def open_run(run: Path) -> Loaded:
    """The recipe of a run folder, tiny or whole as it was run.

    Raises CheckpointError where `run` is no run folder, or the recipes that it refers to, or their data, have changed
    since.
    """
    if not (run / RECIPE).is_file():
        raise CheckpointError(
            f"{run} is not a run folder (it has no {RECIPE}); give the folder that `softdimo run` wrote"
        )
    loaded = recipes.load(run)
    for smoke in (False, True):
        if training_hash(found := replace(loaded, smoke=smoke)) == _recorded(run):
            return found
    raise CheckpointError(
        f"{run} was made from recipes that have changed since, or from other data (files in its folders), so its "
        "networks cannot be told from others; run its recipe again, or restore what was there"
    )


def cached(run: Path, smoke: bool) -> Ensure:
    """An `Ensure` that finds what `run` was made from, and never trains."""

    def ensure(ref: RecipeRef) -> Path:
        folder = _home(run, recipes.load_ref(ref, smoke))
        if not (folder / PRODUCT).is_file():
            raise WeightsError(f"{run} needs the weights of {ref.recipe}, but {folder} has none; run its recipe again")
        return folder

    return ensure


def ancestry(run: Path) -> list[tuple[Path, bool]]:
    """(run folder, whether this run's training needed it) of every recipe that `run` names, dependencies first.

    Raises as `open_run` does; RecipeError where one of those recipes is gone.
    """
    from softdimo.runs import jobs

    loaded = open_run(run)
    training = jobs.needed(replace(loaded, recipe=loaded.recipe.model_copy(update={"eval": None, "search": None})))
    found = [(_home(run, need.loaded), key in training) for key, need in jobs.needed(loaded).items()]
    return [(folder, made) for folder, made in found if folder.is_dir()]


def _home(run: Path, loaded: Loaded) -> Path:
    """The run of another recipe, beside `run` (which may itself be a cached one)."""
    return home_of(loaded, cache_folder(run).parent)


def cache_folder(run: Path) -> Path:
    """The folder of what `run` shares with others."""
    runs = run.resolve().parent
    return runs if runs.name == CACHE else runs / CACHE


def _recorded(run: Path) -> str:
    recorded = RunFolder(run).recorded_hash()
    if recorded is None:
        raise CheckpointError(f"{run / LOCK} is missing; run the recipe again")
    return recorded
