"""`softdimo run`: a recipe's sections, one after the other, in its run folder; other recipes are run when needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning_fabric import Fabric

from softdimo import recipe as recipes
from softdimo.build import PRODUCT, Components
from softdimo.engine.algorithm import Algorithm
from softdimo.engine.hardware import launch
from softdimo.engine.train import Training, with_weights
from softdimo.errors import CheckpointError, RecipeError
from softdimo.folder import RunFolder
from softdimo.recipe import Loaded
from softdimo.sheets import Sheets
from softdimo.spec import RecipeRef

Say = Callable[[str], None]


@dataclass
class Session:
    """One command: its devices, the folder for runs, and where it says what it is doing."""

    fabric: Fabric
    runs: Path
    smoke: bool = False
    tensorboard: bool = False
    say: Say = print
    _under_way: list[str] = field(default_factory=list)

    def parts(self, loaded: Loaded) -> Components:
        """Components of a recipe; other recipes that it names are run when their weights are asked for."""
        return Components(loaded.recipe, self.fabric.device, self.ensure)

    def ensure(self, ref: RecipeRef) -> Path:
        """Run folder of another recipe's training, made once and cached by content."""
        loaded = recipes.load(ref.recipe, smoke=self.smoke)
        digest = training_hash(loaded)
        folder = self.runs / "cache" / f"{loaded.path.stem}-{digest[:8]}"
        if (folder / PRODUCT).is_file():
            return folder
        if loaded.recipe.train is None:
            raise RecipeError(f"{loaded.path} has no `train:` section, so it makes no weights")
        if ref.recipe in self._under_way:
            circle = " -> ".join([*self._under_way, ref.recipe])
            raise RecipeError(f"recipes need each other's weights in a circle: {circle}")
        self._under_way.append(ref.recipe)
        try:
            held = RunFolder(folder)
            if self.fabric.is_global_zero:
                held.hold()
            try:
                if not (folder / PRODUCT).is_file():
                    self.train(loaded, held, self.parts(loaded), resume=True)
            finally:
                held.release()
        finally:
            self._under_way.pop()
        return folder

    def train(self, loaded: Loaded, folder: RunFolder, parts: Components, resume: bool) -> None:
        """The `train:` section, up to weights in the folder."""
        digest = training_hash(loaded)
        if self.fabric.is_global_zero:
            folder.describe(recipes.dump(loaded.recipe), digest, recipes.distributions(loaded.recipe))
        training = Training(parts, self.fabric, folder.path, digest, loaded.path.stem, self.tensorboard)
        sheets = Sheets(parts, folder.path / "samples")
        training.run(resume, self._sampling(sheets, training))

    def _sampling(self, sheets: Sheets, training: Training) -> Callable[[int, Algorithm], None] | None:
        if not self.fabric.is_global_zero or self.fabric.world_size > 1:
            return None
        network = training.settings.network

        def draw(done: int, algorithm: Algorithm) -> None:
            sheets.write(done, network, algorithm.network, algorithm.ema.module(algorithm.network))

        return None if network == "features" else draw


def training_hash(loaded: Loaded) -> str:
    """Hash of everything that a recipe's training depends on."""
    return recipes.content_hash(loaded.recipe.model_copy(update={"eval": None, "search": None}), loaded.smoke)


def start_session(loaded: Loaded, runs: Path, tensorboard: bool = False, say: Say = print) -> Session:
    """Launch Fabric as the recipe says."""
    return Session(launch(loaded.recipe.hardware), runs, loaded.smoke, tensorboard, say)


def default_out(loaded: Loaded, runs: Path) -> Path:
    """`runs/<recipe>`, or `runs/<recipe>-smoke`."""
    return runs / (loaded.path.stem + ("-smoke" if loaded.smoke else ""))


def run(
    loaded: Loaded,
    out: Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    tensorboard: bool = False,
    say: Say = print,
) -> Path:
    """Train, evaluate, search and report, as far as the recipe has these sections. Returns the run folder.

    A folder that holds the finished training of the same recipe is not trained again. An unfinished one needs `resume`
    (go on) or `fresh` (start over).
    """
    runs = out.parent if out is not None else Path("runs")
    folder = RunFolder(out if out is not None else default_out(loaded, runs))
    session = start_session(loaded, runs, tensorboard, say)
    if session.fabric.is_global_zero:
        folder.hold()
    try:
        _in_folder(loaded, folder, session, resume, fresh)
    finally:
        folder.release()
    return folder.path


def _in_folder(loaded: Loaded, folder: RunFolder, session: Session, resume: bool, fresh: bool) -> None:
    digest, recorded = training_hash(loaded), folder.recorded_hash()
    if fresh and session.fabric.is_global_zero:
        folder.clear()
    elif recorded not in (None, digest):
        raise CheckpointError(
            f"{folder.path} holds a run of another recipe (or of other settings); "
            "give another --out, or --fresh to replace it"
        )
    session.fabric.barrier("folder")
    parts = session.parts(loaded)
    if loaded.recipe.train is not None:
        done = (folder.path / PRODUCT).is_file()
        begun = (folder.path / "checkpoints").is_dir()
        if begun and not done and not resume:
            raise CheckpointError(f"{folder.path} holds an unfinished run: --resume goes on, --fresh starts over")
        if not done:
            session.train(loaded, folder, parts, resume)
        parts = with_weights(parts, loaded.recipe.train.network, folder.path / PRODUCT)
    elif session.fabric.is_global_zero:
        folder.describe(recipes.dump(loaded.recipe), digest, recipes.distributions(loaded.recipe))
    with torch.inference_mode(False):
        finish(loaded, folder.path, parts, session)


def finish(loaded: Loaded, folder: Path, parts: Components, session: Session) -> None:
    """Everything after training: `eval:`, `search:`, the report."""
