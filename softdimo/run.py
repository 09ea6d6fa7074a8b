"""`softdimo run`: a recipe's sections, one after the other, in its run folder; other recipes are run when needed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric

from softdimo import recipe as recipes
from softdimo.build import PRODUCT, Components
from softdimo.engine.algorithm import Algorithm
from softdimo.engine.hardware import launch, one_voice
from softdimo.engine.train import Training, with_weights
from softdimo.errors import CheckpointError, Interrupted, RecipeError, WeightsError
from softdimo.files import sweep, write_json, write_text
from softdimo.memory.sizes import slow_in_bf16
from softdimo.recipe import Loaded
from softdimo.runs import jobs, measure
from softdimo.runs.folder import RECIPE, RunFolder
from softdimo.runs.lineage import CACHE, default_out, home_of, recorded_there, training_hash
from softdimo.runs.ranks import Ranks
from softdimo.runs.sheets import COLUMNS, FEW, Sheets

Say = Callable[[str], None]


@dataclass
class Session:
    """One command: its devices, the folder for runs, and where it says what it is doing."""

    fabric: Fabric
    runs: Path
    smoke: bool = False
    tensorboard: bool = False
    say: Say = print
    workers: int = 1
    """Processes that share the work."""
    threads: int | None = None
    """CPU threads of a training, be it in this process or in a job: sums depend on them in the last bits."""

    @property
    def ranks(self) -> Ranks:
        """The processes of this run. What they do depends on files that the first alone looks at, or all might part."""
        return Ranks(self.fabric.global_rank, self.fabric.world_size, self.fabric.device)

    def hold(self, folder: RunFolder, waiting: str) -> None:
        """Rank 0 takes a folder, however long that takes; all ranks enter."""
        with self.fabric.rank_zero_first():
            if self.ranks.first:
                folder.hold(waiting=lambda: self.say(waiting))

    @contextlib.contextmanager
    def inside(self, folder: RunFolder, again: str) -> Iterator[None]:
        """Work in a folder that rank 0 holds meanwhile. Training saves when it is stopped; all else just says so."""
        with one_voice(self.fabric):
            if self.ranks.first:
                folder.hold()
            try:
                yield
            except KeyboardInterrupt as stop:
                text = f"stopped; {folder.path} keeps what is done. Run the same command {again} to go on"
                raise Interrupted(text) from stop
            finally:
                folder.release()

    def parts(self, loaded: Loaded) -> Components:
        """Components of a recipe; other recipes that it names are run when their weights are asked for."""
        return Components(
            loaded.recipe,
            self.fabric.device,
            lambda ref: self.ensure(recipes.load_ref(ref, self.smoke)),
            self.runs / CACHE,
        )

    def ensure(self, loaded: Loaded) -> Path:
        """Run folder of another recipe's training, made once and found again by its content."""
        folder = self.home(loaded)
        if self.ranks.agree((folder / PRODUCT).is_file()):
            return folder
        if loaded.recipe.train is None:
            raise RecipeError(f"{loaded.path} has no `train:` section, so it makes no weights")
        held = RunFolder(folder)
        self.hold(held, f"waiting for another run, which is making {folder}")
        try:
            if not self.ranks.agree((folder / PRODUCT).is_file()):
                if self.ranks.first:
                    self._point_out(loaded)
                    describe(loaded, held)
                with torch.inference_mode(False), torch.enable_grad():
                    self.train(loaded, held, self.parts(loaded), resume=True)
        finally:
            held.release()
        return folder

    def _point_out(self, loaded: Loaded) -> None:
        """An unfinished run of a recipe is not gone on with for another one's sake: its owner may want it as it is."""
        named = default_out(loaded, self.runs)
        if (named / "checkpoints").is_dir() and recorded_there(loaded, named):
            self.say(
                f"{named} is unfinished and not used; to use it, stop and finish it: softdimo run {named} --resume"
            )

    def home(self, loaded: Loaded) -> Path:
        """Run folder of a recipe that another one needs."""
        return home_of(loaded, self.runs, self.ranks.agree)

    def train(self, loaded: Loaded, folder: RunFolder, parts: Components, resume: bool) -> None:
        """The `train:` section, up to weights in the folder."""
        title = folder.path.name if loaded.path.name == RECIPE else loaded.path.stem
        training = Training(parts, self.fabric, folder.path, training_hash(loaded), title, self.tensorboard)
        columns = FEW if self.smoke else COLUMNS
        sheets = Sheets(parts, folder.path / "samples", self.ranks.first, columns, self.fabric.autocast)
        writer = RunFolder(jobs.parts_folder(folder.path))
        self.hold(writer, f"waiting: a job of a run that was killed is saving in {folder.path}")
        if self.ranks.first:
            sweep(folder.path)
        all_threads = torch.get_num_threads()
        torch.set_num_threads(self.threads or all_threads)
        try:
            training.run(resume, self._sampling(sheets, training))
        finally:
            torch.set_num_threads(all_threads)
            writer.release()

    def _sampling(self, sheets: Sheets, training: Training) -> Callable[[int, Algorithm], None] | None:
        network = training.settings.network

        def draw(done: int, algorithm: Algorithm) -> None:
            sheets.write(done, network, algorithm.network, partial(algorithm.ema.applied, algorithm.network))

        return None if network == "features" else draw


def start_session(loaded: Loaded, runs: Path, tensorboard: bool = False, say: Say = print) -> Session:
    """Launch Fabric as the recipe says, and share the cores of a CPU among processes (see `jobs`)."""
    hardware, fabric = loaded.recipe.hardware, launch(loaded.recipe.hardware)
    session = Session(fabric, runs, loaded.smoke, tensorboard, say if fabric.is_global_zero else lambda text: None)
    if hardware.precision.startswith("bf16") and slow_in_bf16(fabric.device.type):
        session.say("this processor has no instructions for bf16: with hardware.precision=32-true it is much faster")
    if fabric.device.type == "cpu" and fabric.world_size == 1 and not loaded.smoke:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        session.workers = hardware.jobs or min(4, cores)
        session.threads = max(1, (hardware.threads or cores) // session.workers)
    return session


def describe(loaded: Loaded, folder: RunFolder) -> None:
    """Write the resolved recipe and the lock file into the folder; that of a finished training stays."""
    finished = loaded.recipe.train is not None and (folder.path / PRODUCT).is_file()
    folder.describe(recipes.dump(loaded.recipe), training_hash(loaded), recipes.distributions(loaded.recipe), finished)


def as_recorded(loaded: Loaded) -> Loaded:
    """The recipe of a run folder, tiny if that run was; other recipes as they are."""
    if loaded.path.name != RECIPE or training_hash(loaded) == RunFolder(loaded.path.parent).recorded_hash():
        return loaded
    tiny = replace(loaded, smoke=True)
    return tiny if training_hash(tiny) == RunFolder(loaded.path.parent).recorded_hash() else loaded


def refuse_another(loaded: Loaded, folder: RunFolder) -> None:
    """A folder in which something was made belongs to its recipe."""
    made = any((folder.path / name).exists() for name in ("checkpoints", PRODUCT, "eval.json", "search.json"))
    if made and folder.recorded_hash() not in (None, training_hash(loaded)):
        raise CheckpointError(
            f"{folder.path} holds a run of another recipe (or of other settings, or of data that has changed since); "
            "go back to those, give another --out, or --fresh to replace it"
        )


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
    loaded = as_recorded(loaded)
    folder = RunFolder(out if out is not None else default_out(loaded, Path("runs")))
    began = time.monotonic()
    session = start_session(loaded, folder.path.parent, tensorboard, say)
    with session.inside(folder, "with --resume"):
        whole = _in_folder(loaded, folder, session, resume, fresh)
        if whole and session.ranks.first:
            write_json(folder.path / "timing.json", {"seconds": round(time.monotonic() - began, 1)})
    return folder.path


def _in_folder(loaded: Loaded, folder: RunFolder, session: Session, resume: bool, fresh: bool) -> bool:
    """All sections; returns whether nothing was taken from earlier runs, so that the wall time means something."""
    if not fresh:
        refuse_another(loaded, folder)
    elif session.ranks.first:
        folder.clear()
    session.fabric.barrier("folder")
    parts = session.parts(loaded)
    if session.ranks.first:
        describe(loaded, folder)
    product = folder.path / PRODUCT
    if loaded.recipe.train is not None:
        begun = session.ranks.agree((folder.path / "checkpoints").is_dir() and not product.is_file())
        if begun and not resume:
            raise CheckpointError(f"{folder.path} holds an unfinished run: --resume goes on, --fresh starts over")
    whole = side_by_side(loaded, folder, session) and not resume
    if loaded.recipe.train is not None:
        if not session.ranks.agree(product.is_file()):
            session.train(loaded, folder, parts, resume)
        parts = with_weights(parts, loaded.recipe.train.network, product)
    finish(loaded, folder.path, parts, session)
    return whole


def side_by_side(loaded: Loaded, folder: RunFolder, session: Session) -> bool:
    """On a CPU with several cores: everything that can be made apart, in processes of its own (see `jobs`).

    Returns whether nothing that the run needs was there already.
    """
    cached = {p for p, need in jobs.needed(loaded).items() if (session.home(need.loaded) / PRODUCT).is_file()}
    trained = (folder.path / PRODUCT).is_file()
    anew = not cached and not trained and not (folder.path / "eval.json").is_file()
    if session.workers == 1 or session.threads is None:
        return anew
    measured = loaded.recipe.eval is not None and measure.complete(loaded.recipe.eval, folder.path / "eval.json")
    todo = jobs.plan(loaded, folder.path, session.runs, session.workers, cached, trained, measured)
    if len(todo) > 1:
        session.say(f"{len(todo)} jobs in {session.workers} processes: " + ", ".join(job.title for job in todo))
        jobs.run(todo, session.workers, session.threads)
    measure.gather(jobs.parts_folder(folder.path), folder.path / "eval.json")
    return anew


def finish(loaded: Loaded, folder: Path, parts: Components, session: Session) -> None:
    """Everything after training: `eval:`, `search:`, the report."""
    if loaded.recipe.eval is not None:
        measure.evaluate_section(loaded, folder, parts, session.say, ranks=session.ranks)
    if loaded.recipe.search is not None:
        measure.search_section(loaded, folder, parts, session.say, ranks=session.ranks)
    report(folder, session)


def report(folder: Path, session: Session) -> None:
    """The first rank writes the report."""
    if session.ranks.first:
        from softdimo.report import write

        session.say(f"report: {write(folder)}")
    session.fabric.barrier("report")


def eval_only(loaded: Loaded, out: Path | None = None) -> Path:
    """The `eval:` section alone, of a recipe or a finished run; writes eval.json and the report."""
    return _one_section(loaded, out, "eval")


def search_only(loaded: Loaded, out: Path | None = None) -> Path:
    """The `search:` section alone, of a recipe or a finished run; writes search.json and the report."""
    return _one_section(loaded, out, "search")


def statistics(loaded: Loaded, out: Path) -> Path:
    """Write the statistics of the data's real images under the recipe's metric; returns the file."""
    session = start_session(loaded, Path("runs"))
    measure.statistics_section(loaded, session.parts(loaded), out, session.say)
    return out


def _one_section(loaded: Loaded, out: Path | None, section: str) -> Path:
    if getattr(loaded.recipe, section) is None:
        raise RecipeError(f"{loaded.path} has no `{section}:` section")
    loaded = as_recorded(loaded)
    home = default_out(loaded, Path("runs"))
    folder = RunFolder(out or home)
    if loaded.recipe.train is not None:
        if not (home / PRODUCT).is_file():
            raise WeightsError(f"{home} holds no finished training; run `softdimo run {loaded.path}` first")
        refuse_another(loaded, RunFolder(home))
    refuse_another(loaded, folder)
    session = start_session(loaded, (home if loaded.recipe.train is not None else folder.path).parent)
    with session.inside(folder, "again"):
        if session.ranks.first and loaded.recipe.train is not None and folder.path.resolve() == home.resolve():
            _describe_section(loaded, home, section)
        elif session.ranks.first:
            describe(loaded, folder)
        parts = session.parts(loaded)
        if loaded.recipe.train is not None:
            parts = with_weights(parts, loaded.recipe.train.network, home / PRODUCT)
        measured = measure.evaluate_section if section == "eval" else measure.search_section
        measured(loaded, folder.path, parts, session.say, home / PRODUCT, ranks=session.ranks)
        report(folder.path, session)
    return folder.path


def _describe_section(loaded: Loaded, home: Path, section: str) -> None:
    """Write one section into the recipe of a finished run; the rest says how it was trained, and stays."""
    mine = recipes.load(home).recipe
    write_text(home / RECIPE, recipes.dump(mine.model_copy(update={section: getattr(loaded.recipe, section)})))
