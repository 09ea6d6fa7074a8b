"""`eval:` and `search:` sections -> built pieces -> eval.json and search.json in the run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from softdimo import recipe as recipes
from softdimo.build import PRODUCT, Components, fill, locate
from softdimo.errors import CheckpointError, RecipeError
from softdimo.evaluate import Pieces, Progress, Subject, evaluate, network_digests, reference_images
from softdimo.files import atomic, write_json
from softdimo.runs.folder import environment
from softdimo.kinds import Metric, Sampler, Search, Teacher
from softdimo.math.init import Init
from softdimo.runs.ranks import ALONE, Ranks
from softdimo.recipe import Loaded, Recipe
from softdimo.recipe.model import Eval, Method, Row, SearchSection
from softdimo.recipe.shrink import walk
from softdimo.search.scoring import Scores, Weighted
from softdimo.search.methods import SearchPieces, search
from softdimo.spec import NetworkSpec, RecipeRef, Weights

Say = Callable[[str], None]


def evaluate_section(
    loaded: Loaded,
    folder: Path,
    parts: Components,
    say: Say,
    product: Path | None = None,
    path: Path | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Measure the recipe's rows; `product` is the student just trained (the folder's own by default).

    With `path`, only a part of the table is measured and written there, for `gather`. All of `ranks` enter.
    """
    settings = parts.recipe.eval
    assert settings is not None
    product = product or folder / PRODUCT
    rows = [subject for row in settings.rows for subject in _subjects(row, parts, product, loaded.smoke)]

    pieces = Pieces(
        data=parts.data,
        metrics=lambda: _metrics(settings, parts),
        rows=rows,
        tokenizer=parts.tokenizer,
        device=parts.device,
        forbidden=network_digests(_played(loaded, parts)),
        ranks=ranks,
        text=None if (codes := parts.encodings) is None else f"{codes.identity} {codes.negative}",
    )
    evaluate(
        pieces, path or folder / "eval.json", real=path is None, samples=settings.samples, reference=settings.reference,
        seeds=settings.seeds, batch_size=settings.batch_size, lock=environment(recipes.distributions(loaded.recipe)),
        progress=_telling(say), trial=loaded.smoke,
    )  # fmt: skip


def _metrics(settings: Eval, parts: Components) -> dict[str, Metric]:
    """The metrics, fresh, by name."""
    made: dict[str, Metric] = {}
    for spec in settings.metrics:
        name = getattr(spec, "name", "") or spec.use.split(":")[-1]
        while name in made:
            name += "'"
        made[name] = cast(Metric, spec.build(parts.context()))
    return made


def statistics_section(loaded: Loaded, parts: Components, out: Path, say: Say) -> None:
    """Write what the recipe's metric keeps of the data's real images into an npz that `reference:` reads.

    It holds the arrays of `Metric.statistics` and `provenance`, the metric's fingerprint and what wrote it, as JSON.

    Raises:
        RecipeError: no metric of the recipe keeps statistics, or several do, or it has a reference already.
        DataError: the data set has no images.
    """
    settings = parts.recipe.eval
    if settings is None:
        raise RecipeError(f"{loaded.path} has no `eval:` section, so no metric whose statistics could be written")
    found = {n: m for n, m in _metrics(settings, parts).items() if type(m).statistics is not Metric.statistics}
    if len(found) != 1:
        which = f"{' and '.join(found)} do; keep one in `eval.metrics`" if found else "add `frechet` to `eval.metrics`"
        raise RecipeError(f"{loaded.path}: statistics are those of one metric that keeps them: {which}")
    name, metric = found.popitem()
    if metric.compares_with == "file":
        at = f"eval.metrics.{name}.reference"
        raise RecipeError(f"{loaded.path}: {at} is a file already, so the metric looks at no data; add {at}=null")
    pieces = Pieces(parts.data, lambda: {name: metric}, (), parts.tokenizer, parts.device)
    reference = (settings.reference, settings.batch_size, _telling(say), False)
    with torch.no_grad():
        for images, cond in reference_images(pieces, {name: metric}, *reference):
            metric.reference(images, cond)
    lock = environment(recipes.distributions(loaded.recipe))
    about = metric.fingerprint() | {"data": parts.data.fingerprint()} | {k: lock[k] for k in ("softdimo", "git")}
    arrays = {key: tensor.cpu().numpy() for key, tensor in metric.statistics().items()}
    with atomic(out) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, provenance=np.array(json.dumps(about)), **arrays)


def complete(settings: Eval, path: Path) -> bool:
    """Whether a table has all rows, by name: nothing is worth a process of its own then. `evaluate` looks closer."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        names = {row["name"] for row in table["rows"]}
        plan = (table["samples"], table["seeds"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    rows = [each for row in settings.rows for each in row.swept()]
    wanted = {row.name + (" held out" if row.of == "real" else "") for row in rows}
    return wanted <= names and plan == (settings.samples, list(settings.seeds))


def gather(folder: Path, target: Path) -> None:
    """Put rows that were measured apart into `target`, where `evaluate` finds them by their keys."""
    found: dict[str, dict[str, object]] = {}
    whole: dict[str, object] = {}
    for path in [target, *sorted(folder.glob("eval-*.json"))]:
        if path.is_file():
            try:
                table = json.loads(path.read_text(encoding="utf-8"))
                found |= {row["key"]: row for row in table["rows"]}
                whole = table if path == target else whole
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{path} is damaged ({error}); delete it to evaluate anew") from error
    if found:
        write_json(target, whole | {"rows": list(found.values())})


def search_section(
    loaded: Loaded,
    folder: Path,
    parts: Components,
    say: Say,
    product: Path | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Compare the recipe's searches. All of `ranks` enter."""
    settings = parts.recipe.search
    assert settings is not None
    net = student(parts, settings.weights, product or folder / PRODUCT)
    init = student_init(settings.weights, parts, loaded.smoke)
    pieces = SearchPieces(
        net=net,
        tokenizer=parts.require_tokenizer(),
        init=init,
        data=parts.data,
        score=scores(settings, parts),
        methods={m.name: search_method(m, settings, parts, init) for m in settings.methods},
        held_out={h.name: parts.make(h.reward) for h in settings.held_out},
        device=parts.device,
        ranks=ranks,
        rows=settings.rows,
        recompute=settings.checkpoint,
    )
    search(
        pieces, folder, conditions=settings.conditions, batch_size=settings.batch_size, seed=parts.recipe.seed,
        lock=environment(recipes.distributions(loaded.recipe)), progress=_telling(say),
    )  # fmt: skip


def scores(settings: SearchSection, parts: Components) -> Scores:
    """What a search optimizes, built."""
    made = [Weighted(r.name, parts.make(r.reward), r.weight) for r in settings.rewards()]
    return Scores(made, settings.pool, settings.checkpoint)


def search_method(method: Method, settings: SearchSection, parts: Components, init: Init) -> Search:
    """One of the section's searches, built for a student that starts from `init`."""
    return cast(Search, method.search.build(replace(parts.context(), init=init, rows=settings.rows)))


def student(parts: Components, weights: Weights | None, product: Path) -> Teacher:
    """A student in evaluation mode: of the given weights, or the one just trained."""
    path = product if weights is None else locate(weights, parts.ensure)
    if weights is None and (parts.recipe.train is None or parts.recipe.train.network != "student"):
        raise RecipeError("this recipe trains no student, so a row of one needs `weights:`")
    net = parts.context().copy_teacher().requires_grad_(False).eval()
    fill(net, parts.recipe.teacher, path)
    return net


def _subjects(row: Row, parts: Components, product: Path, smoke: bool) -> Iterator[Subject]:
    """What a row measures, once for each value that it sweeps; the network is one."""
    net: Teacher | None = None
    context = parts.context()
    if row.of == "student":
        context = replace(context, init=student_init(row.weights, parts, smoke))
        net = student(parts, row.weights, product)
    elif row.of == "teacher":
        net = parts.require_teacher() if row.weights is None else student(parts, row.weights, product)
    for each in row.swept():
        sampler = None if each.sampler is None else cast(Sampler, each.sampler.build(context))
        yield Subject(each.name, row.of, net, sampler, row.decode, row.split, dict(row.sweep))


def student_init(weights: Weights | None, parts: Components, smoke: bool) -> Init:
    """The initialization that a student was trained to start from: that of its own recipe, where it has one."""
    return recipes.load_ref(weights, smoke).recipe.init if isinstance(weights, RecipeRef) else parts.recipe.init


def _played(loaded: Loaded, parts: Components) -> dict[str, object]:
    """Networks that trained what is measured: the teacher, and those inside the terms of every student's recipe."""
    found: dict[str, object] = {} if parts.teacher is None else {"the teacher": parts.teacher}
    for role, spec in _players(loaded):
        found[role] = parts.make(spec)
    return found


def needed_to_refuse(loaded: Loaded) -> set[str]:
    """Keys of the recipes that make the networks of `_played`: every row asks whether one of them is its judge."""
    return {spec.weights.key for _, spec in _players(loaded) if isinstance(spec.weights, RecipeRef)}


def _players(loaded: Loaded) -> Iterator[tuple[str, NetworkSpec]]:
    """Networks with weights inside the terms of this recipe's student, and of every other that it measures."""
    for path, recipe in _recipes(loaded.recipe, loaded.path.stem, loaded.smoke, {}):
        for term in recipe.train.terms if recipe.train is not None else ():
            for _, spec in walk(term):
                if isinstance(spec, NetworkSpec) and spec.weights is not None:
                    yield f"`{spec.use}` of the term `{term.name}` in {path}", spec


def _recipes(recipe: Recipe, name: str, smoke: bool, seen: dict[str, Recipe]) -> Iterator[tuple[str, Recipe]]:
    """The recipe, and those of the students that it measures, and that they and it started from."""
    yield name, recipe
    rows = recipe.eval.rows if recipe.eval is not None and not seen else ()
    refs: list[Weights | None] = [row.weights for row in rows]
    if recipe.train is not None:
        refs.append(recipe.train.start.from_)
    for ref in refs:
        if isinstance(ref, RecipeRef) and ref.key not in seen:
            seen[ref.key] = recipes.load_ref(ref, smoke).recipe
            yield from _recipes(seen[ref.key], Path(ref.recipe).stem, smoke, seen)


def _telling(say: Say, every: float = 10.0) -> Progress:
    """Say at most every `every` seconds what is being measured."""
    last = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > every:
            last = time.monotonic()
            say(f"measuring {what}: {done}/{total}")

    return progress
