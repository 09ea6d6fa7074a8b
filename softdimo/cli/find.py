"""`softdimo search MODEL --labels ... | --prompt ...`: test-time search for conditions of one's own."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from softdimo import recipe as recipes
from softdimo.build import PRODUCT, Components, fill, locate
from softdimo.errors import CheckpointError, RecipeError, SoftdimoError, WeightsError
from softdimo.export import is_export, open_export
from softdimo.files import sweep
from softdimo.kinds import Teacher
from softdimo.math.digest import digest_json, digest_module
from softdimo.math.init import Init
from softdimo.recipe import Loaded
from softdimo.recipe.model import Method, SearchSection
from softdimo.registry import suggest
from softdimo.report import found
from softdimo.report.scale import number
from softdimo.report.searched import budget, maximized, rewarded
from softdimo.run import Say, Session, as_recorded, refuse_another, start_session
from softdimo.runs import measure
from softdimo.runs.folder import LOCK, RECIPE, RunFolder, environment
from softdimo.runs.lineage import default_out
from softdimo.search import wanted
from softdimo.search.wanted import Wanted
from softdimo.search.winners import CONDITIONS, Json, Searcher
from softdimo.spec import RecipeRef, Weights

STUDENT = "student.safetensors"
_NAME_ONE = "name a recipe with a `search:` section, --with RECIPE"


@dataclass(frozen=True)
class Model:
    """A student that can be searched, and components around it."""

    name: str
    parts: Components
    net: Teacher
    init: Init


def find(
    where: str,
    labels: Sequence[str] = (),
    prompts: Sequence[str] = (),
    out: Path | None = None,
    overrides: Sequence[str] = (),
    section: str | None = None,
    method: str | None = None,
    compare: bool = False,
    fresh: bool = False,
    smoke: bool = False,
    say: Say = print,
) -> Path:
    """Search for every condition and write what was found into `out` (see `winners`); returns that folder.

    `where` is an exported student, a recipe with a `search:` section, or a run folder; `section` another recipe, whose
    `search:` section, seed and hardware are taken instead, and which `overrides` then change. Finished conditions in
    `out` stay; a folder that other settings have made is refused, unless it is to be begun `fresh`.
    """
    if not (labels or prompts):
        raise RecipeError("nothing to search for: give --labels, --prompt or --prompts-file")
    told = _told(where, section, overrides, smoke)
    search = told.recipe.search
    if search is None:
        raise RecipeError(f"{section or where} does not say what to search for: {_NAME_ONE}")
    chosen = _method(search, method)
    model = None if is_export(Path(where)) else as_recorded(recipes.load(where, () if section else overrides, smoke))
    home = Path(where) if model is None else default_out(model, Path("runs"))
    folder = RunFolder(out or Path("found") / home.name)
    tiny = told.smoke or (model is not None and model.smoke)
    session = start_session(replace(told, smoke=tiny), Path("runs") if model is None else home.parent, say=say)
    with session.inside(folder, "again"):
        opened = _exported(home, session) if model is None else _recipe(model, home, session)
        asked = _asked(opened, labels, prompts)
        about = _about(opened, told, search, chosen)
        keys = [each.key for each in asked]
        if session.ranks.first:
            _settle(folder, about, fresh)
            found.record(folder.path, about, keys)
        session.fabric.barrier("folder")
        try:
            _searcher(opened, told, search, chosen, compare, session).run(asked, folder.path, _telling(session.say))
        except BaseException:
            if session.ranks.first:
                with contextlib.suppress(SoftdimoError):  # what stopped the search is what has to be told
                    found.publish(folder.path, about, keys)
            raise
        session.fabric.barrier("search")
        if session.ranks.first:
            session.say(f"report: {found.publish(folder.path, about, keys)}")
    return folder.path


def _told(where: str, section: str | None, overrides: Sequence[str], smoke: bool) -> Loaded:
    """The recipe that says what to search for."""
    if section is not None:
        return recipes.load(section, overrides, smoke)
    path = Path(where)
    if not is_export(path):
        return as_recorded(recipes.load(where, overrides, smoke))
    own = yaml.safe_load((path / RECIPE).read_text(encoding="utf-8"))
    if not own.get("search") and not any(each.startswith("search") for each in overrides):
        raise RecipeError(f"{where} does not say what to search for: {_NAME_ONE}")
    student = f"search.weights={json.dumps(str(path / STUDENT))}"
    alone = ["train=null", "eval=null", "teacher.weights=null", student]
    try:
        return recipes.load(path / RECIPE, [*alone, *overrides], smoke)
    except RecipeError as error:
        raise RecipeError(f"{error}\nan export comes without the recipes that it names; {_NAME_ONE}") from error


def _method(search: SearchSection, name: str | None) -> Method:
    """The method of this name; the first without."""
    if name is None:
        return search.methods[0]
    known = [each.name for each in search.methods]
    if name not in known:
        raise RecipeError(f"no method is called `{name}`{suggest(name, known)} (there are: {'; '.join(known)})")
    return search.methods[known.index(name)]


def _exported(path: Path, session: Session) -> Model:
    if not (path / STUDENT).is_file():
        raise RecipeError(f"{path} is an exported teacher; a search is for a student, which takes one step")
    parts, generator = open_export(path, session.fabric.device)
    parts.ensure = lambda ref: session.ensure(recipes.load_ref(ref, session.smoke))
    return Model(path.name, parts, generator.net, generator.init)


def _recipe(loaded: Loaded, home: Path, session: Session) -> Model:
    """The student of a recipe or a run folder: the one that its search names, or the one that it has trained."""
    recipe = loaded.recipe
    weights = recipe.search.weights if recipe.search is not None else None
    trained = recipe.train is not None and recipe.train.network == "student"
    if recipe.teacher is None or (weights is None and not trained):
        raise RecipeError(f"{loaded.path} has no student to search with: it trains none, and `search.weights` is null")
    if weights is None and not (home / PRODUCT).is_file():
        raise WeightsError(f"{home} holds no finished training; run `softdimo run {loaded.path}` first")
    if weights is None:
        refuse_another(loaded, RunFolder(home))
    parts = session.parts(loaded)
    net: Teacher = parts.fresh(recipe.teacher)
    fill(net, recipe.teacher, home / PRODUCT if weights is None else locate(weights, parts.ensure))
    net.requires_grad_(False).eval()
    parts.__dict__["teacher"] = net  # its table is the teacher's, which is not needed besides
    return Model(_name(weights) or home.name, parts, net, measure.student_init(weights, parts, session.smoke))


def _name(weights: Weights | None) -> str:
    """What to call a student by its weights: the recipe, the run or the file that they come from."""
    if weights is None:
        return ""
    path = Path(weights.recipe if isinstance(weights, RecipeRef) else weights)
    return path.parent.name if path.name == PRODUCT else path.stem


def _asked(model: Model, labels: Sequence[str], prompts: Sequence[str]) -> list[Wanted]:
    """The conditions, of the kind that the student knows."""
    textual = model.parts.recipe.text_encoder is not None
    if textual and labels:
        raise RecipeError(f"{model.name} draws prompts, not classes: give --prompt instead of --labels")
    if prompts and not textual:
        classes = model.parts.given.classes
        few = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise RecipeError(f"{model.name} draws classes, not prompts: give --labels instead, of {few}")
    return wanted.of_prompts(prompts) if textual else wanted.of_labels(labels, model.parts.given.classes)


def _about(model: Model, told: Loaded, search: SearchSection, method: Method) -> Json:
    """Everything that the page says once, and `identity`: a hash of all that a condition's result depends on."""
    spec = method.search
    same = {"name": "", "search": spec.model_copy(update={"rows": None}) if hasattr(spec, "rows") else spec}
    counted = {"conditions": 1, "batch_size": 1, "rows": None, "checkpoint": False, "weights": None}
    section = search.model_copy(update=counted | {"methods": (method.model_copy(update=same),)})
    depends = {
        "student": digest_module(model.net),
        "tokenizer": digest_module(model.parts.require_tokenizer()),
        "text_encoder": None if (encoder := model.parts.recipe.text_encoder) is None
        else recipes.settings_hash(encoder, told.smoke),
        "init": model.init.model_dump(mode="json"),
        "search": recipes.settings_hash(section, told.smoke),
        "seed": told.recipe.seed,
    }  # fmt: skip
    return {
        "identity": digest_json(depends),
        "model": model.name,
        "method": method.name,
        "settings": spec.model_dump(mode="json", by_alias=True),
        "equation": maximized(search),
        "reward": rewarded(search),
        "score": [each.name for each in search.rewards()],
        "held_out": [each.name for each in search.held_out],
        "most": budget(method, search),
        "seed": told.recipe.seed,
        "depends": depends,
        "lock": environment(recipes.distributions(told.recipe)),
    }


def _settle(folder: RunFolder, about: Json, fresh: bool) -> None:
    """Refuse a folder that holds something else; empty one of searches that is to be begun again."""
    path = folder.path
    if any((path / name).exists() for name in (RECIPE, LOCK, PRODUCT)):
        raise CheckpointError(f"{path} is a run folder; give another --out")
    if not (path / found.RECORD).is_file():
        if any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise CheckpointError(f"{path} exists and holds no searches; give another --out")
    elif fresh:
        shutil.rmtree(path / CONDITIONS, ignore_errors=True)
        for name in found.FILES:
            (path / name).unlink(missing_ok=True)
    before = found.recorded(path)
    if before is not None and before.get("identity") != about["identity"]:
        then = before.get("depends") or {}
        other = " and ".join(
            "the settings of the search" if key == "search" else f"the {key.replace('_', ' ')}"
            for key, value in about["depends"].items()
            if then.get(key) != value
        )
        raise CheckpointError(
            f"{path} holds searches that differ from this one in {other or 'something'}; go back to that, give another "
            "--out, or --fresh to replace them"
        )
    sweep(path)


def _searcher(
    model: Model, told: Loaded, search: SearchSection, method: Method, compare: bool, session: Session
) -> Searcher:
    return Searcher(
        net=model.net,
        tokenizer=model.parts.require_tokenizer(),
        init=model.init,
        data=model.parts.data,
        score=measure.scores(search, model.parts),
        method=measure.search_method(method, search, model.parts, model.init),
        held_out={each.name: model.parts.make(each.reward) for each in search.held_out},
        seed=told.recipe.seed,
        batch_size=search.batch_size,
        rows=search.rows,
        recompute=search.checkpoint,
        compare=compare,
        device=session.fabric.device,
        ranks=session.ranks,
    )


def _telling(say: Say) -> Callable[[Wanted, Json], None]:
    """Say what was found, a line for each condition."""

    def heard(each: Wanted, result: Json) -> None:
        shown, total = result["shown"], result["budget"]["total"]
        held = [
            f"{name} {number(before)} to {number(shown['winner']['held_out'][name])}"
            for name, before in shown["one_step"]["held_out"].items()
            if before is not None and shown["winner"]["held_out"][name] is not None
        ]
        scores = f"score {number(shown['one_step']['score'])} to {number(shown['winner']['score'])}"
        say(f"{each.text}: {', '.join([scores, *held])}; {total:g} forward-equivalents")

    return heard
