"""`softdimo explain`: what a recipe optimizes, who plays, what an iteration costs, and what a run will do, in words."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from softdimo import recipe as recipes
from softdimo.build import PRODUCT
from softdimo.recipe import Loaded, Recipe
from softdimo.recipe.model import SearchSection, Train
from softdimo.report.equation import prose, text
from softdimo.report.objective import FITS, TermView, objective, plain, player_line, views
from softdimo.report.searched import FORWARD, SOURCE, budget, maximized, rewarded
from softdimo.spec import NetworkSpec, RecipeRef, Spec, Weights

WIDTH = 100


def explain(loaded: Loaded) -> str:
    """The recipe in words: title, networks, objective with every term's equation, source and file, players, cost, plan.

    Imports the plugins that the recipe names; builds and trains nothing.
    """
    recipe = loaded.recipe
    parts = [f"{recipe.title}\n{_path(loaded.path)}{' (smoke)' if loaded.smoke else ''}"]
    parts += [_block("Networks", _networks(recipe))]
    if recipe.train is not None:
        parts += [_student(recipe, recipe.train) if recipe.train.network == "student" else _fit(recipe, recipe.train)]
    if recipe.search is not None:
        parts += [_search(recipe.search)]
    parts += [_block("softdimo run will", _numbered(_plan(loaded)))]
    return "\n\n".join(p for p in parts if p) + "\n"


def references(recipe: Recipe, section: str = "train") -> Iterator[tuple[RecipeRef, str]]:
    """(reference, what for) to every recipe whose weights a section of this one needs, in that order."""
    for kind in ("tokenizer", "text_encoder", "teacher", "features"):
        yield from _refs(getattr(recipe, kind), f"the {kind.replace('_', ' ')}")
    if section == "train" and recipe.train is not None:
        yield from _refs(recipe.train.start, "the start")
        for term in recipe.train.terms:
            yield from _refs(term, f"the term `{term.name}`")
    if section == "eval" and recipe.eval is not None:
        for row in recipe.eval.rows:
            yield from _refs(row, f"the row `{row.name}`")
        for metric in recipe.eval.metrics:
            yield from _refs(metric, f"the metric `{metric.use}`")
    if section == "search" and recipe.search is not None:
        yield from _refs(recipe.search, "the search")


def _student(recipe: Recipe, train: Train) -> str:
    terms = views([t.model_dump(mode="json") for t in train.terms])
    lines = [text(objective(terms)), ""]
    for term in terms:
        lines += _term(term)
    blocks = [_block("Objective", lines), _block("What flows where", _flow(recipe, train, terms))]
    players: list[tuple[str, Mapping[str, Any]]] = [("student", train.player.model_dump(mode="json"))]
    players += [(f"{t.name}'s critic", t.player) for t in terms if t.player]
    blocks.append(_block("Players", _pairs([(name, player_line(p)) for name, p in players])))
    blocks.append(_block("Network passes per sample and iteration (forward 1, backward 2, 1 through frozen weights)",
                         _cost(train)))  # fmt: skip
    return "\n\n".join(blocks)


def _term(term: TermView) -> list[str]:
    """A term with its equation, what it is, where it comes from and which file implements it."""
    weight = f"weight {term.weight}" if not term.rule else f"{text(term.weight)} {term.rule}"
    details = [prose(term.about).replace("`", ""), f"{weight}", term.source, term.file]
    head = f"{text(term.symbol)} = {text(term.equation)}" if term.equation else text(term.symbol)
    return [head, *(line for d in details if d for line in textwrap.wrap(d, WIDTH - 6, initial_indent="    ",
                                                                         subsequent_indent="    "))]  # fmt: skip


def _flow(recipe: Recipe, train: Train, terms: list[TermView]) -> list[str]:
    """From conditions to the terms, with the settings that decide each arrow."""
    init = recipe.init
    relaxed = f"{train.relaxation.kind}, temperature {plain(train.relaxation.temperature)}"
    pairs = [
        ("c", f"conditions from {recipe.data.use}"),
        ("x_init", f"{plain(init.r_init)} of the units masked (exact count), the others uniform random tokens"),
        ("e_in", f"embedded x_init with noise of sigma {plain(init.sigma)} (in units of the {init.noise_rms}'s RMS)"),
        ("z_θ", "student's logits, one pass; x_θ ~ Cat(softmax z_θ) are its hard tokens"),
        ("p_θ", f"relaxed tokens ({relaxed}): E^T p_θ for embeddings, decode_soft(p_θ) for images"),
    ]
    pairs.append(("L_gen", f"gradients of {', '.join(t.name for t in terms)} at z_θ, weighted, one backward"))
    critics = [t.name for t in terms if t.player]
    if critics:
        fresh = [t.name for t in train.terms if getattr(t, "fresh_samples", False)]
        anew = f"; {', '.join(fresh)} on x_θ drawn anew" if fresh else ""
        pairs.append(("critics", f"{', '.join(critics)}: each then trains on the same x_θ, detached{anew}"))
    return _pairs(pairs)


def _cost(train: Train) -> list[str]:
    every = train.player.every
    found = {"student": 1.0 + 2.0 / every}
    for term in train.terms:
        found |= {f"{term.name}: {what}": passes for what, passes in term.passes().items()}
    silent = [t.name for t in train.terms if not t.passes()]
    lines = _pairs([(what, f"{passes:g}") for what, passes in found.items()])
    lines.append(f"{sum(found.values()):g} in all" + (f"; {', '.join(silent)} state none" if silent else ""))
    return lines


def _fit(recipe: Recipe, train: Train) -> str:
    equation, source = FITS.get(train.network, ("", ""))
    head = f"L = {text(equation)}" if equation else "the network's own loss"
    spec = getattr(recipe, train.network)
    lines = [head, *([f"    {source}"] if source else []), f"    {_file(spec)}"]
    player = _pairs([(train.network, player_line(train.player.model_dump(mode="json")))])
    return "\n\n".join([_block("Objective", lines), _block("Player", player)])


def _search(section: SearchSection) -> str:
    """What is maximized at test time, what is only watched, and what each method costs."""
    pairs = [("R", rewarded(section))]
    if section.held_out:
        pairs.append(("watched", ", ".join(h.name for h in section.held_out) + ", never optimized"))
    for method in section.methods:
        cost = budget(method, section)
        said = "states no cost" if cost is None else f"{cost:g} forward-equivalents per condition"
        pairs.append((method.name, f"{said}; {_file(method.search)}"))
    lines = [*(text(line) for line in maximized(section).split(";")), f"    {SOURCE}", f"    {FORWARD}", *_pairs(pairs)]
    return _block("Search at test time", lines)


def _networks(recipe: Recipe) -> list[str]:
    pairs = [("data", f"{recipe.data.use}, {_file(recipe.data)}")]
    for kind in ("tokenizer", "text_encoder", "teacher", "features"):
        spec: NetworkSpec | None = getattr(recipe, kind)
        if spec is not None:
            pairs.append((kind.replace("_", " "), f"{spec.use}, {_file(spec)}; {_weights(spec, kind, recipe)}"))
    if recipe.train is not None and recipe.train.network == "student":
        start = recipe.train.start.from_
        pairs.append(("student", "a copy of the teacher" if start is None else f"starts from {_source(start)}"))
    return _pairs(pairs)


def _weights(spec: NetworkSpec, kind: str, recipe: Recipe) -> str:
    trained = recipe.train is not None and recipe.train.network == kind
    if spec.weights is None:
        fresh = "determined by its settings" if spec.ready() else "no weights yet"
        return "trained here, from fresh weights" if trained else fresh
    return f"{'trained here, from' if trained else 'weights from'} {_source(spec.weights)}"


def _source(weights: Weights) -> str:
    return f"the recipe {_named(weights)}" if isinstance(weights, RecipeRef) else weights


def _plan(loaded: Loaded) -> list[str]:
    """What `softdimo run` does, in order."""
    recipe = loaded.recipe
    seen: dict[str, str] = {}
    steps = _before(recipe, "train", loaded.smoke, seen)
    if recipe.train is not None:
        train = recipe.train
        length = f"{train.iterations} iterations of {train.batch_size}"
        steps.append(f"train the {train.network}: {length}, and keep its EMA in {PRODUCT}")
    if recipe.eval is not None:
        section = recipe.eval
        names = ", ".join(m.use for m in section.metrics)
        steps += _before(recipe, "eval", loaded.smoke, seen)
        steps.append(f"measure {len(section.rows)} rows ({'; '.join(row.name for row in section.rows)}) with {names}: "
                     f"{section.samples} samples, seeds {', '.join(map(str, section.seeds))}")  # fmt: skip
    if recipe.search is not None:
        steps += _before(recipe, "search", loaded.smoke, seen)
        names = ", ".join(m.name for m in recipe.search.methods)
        steps.append(f"search {recipe.search.conditions} conditions by {names}, scored by "
                     + " and ".join(r.name for r in recipe.search.rewards()))  # fmt: skip
    return [*steps, "write report.html"]


def _before(recipe: Recipe, section: str, smoke: bool, seen: dict[str, str]) -> list[str]:
    """Trainings of other recipes that a section needs, deepest first, each once."""
    steps: list[str] = []
    for ref, what in references(recipe, section):
        if ref.key in seen:
            continue
        seen[ref.key] = what
        other = recipes.load_ref(ref, smoke).recipe
        steps += _before(other, "train", smoke, seen)
        train = other.train
        doing = f"{train.network}, {train.iterations} iterations of {train.batch_size}" if train else "no training"
        steps.append(f"for {what}: {_named(ref)} ({doing}), unless done before")
    return steps


def _named(ref: RecipeRef) -> str:
    """The recipe's path, and short overrides; the data set that it takes over is not spelled out."""
    changes = [f"{key}={value}" for key, value in ref.set.items() if not isinstance(value, dict)]
    return " ".join([_path(ref.recipe), *changes])


def _refs(value: Any, what: str) -> Iterator[tuple[RecipeRef, str]]:
    if isinstance(value, RecipeRef):
        yield value, what
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _refs(getattr(value, name), what)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _refs(item, what)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _refs(item, what)


def _file(spec: Spec) -> str:
    return f"{type(spec).__module__.replace('.', '/')}.py"


def _path(path: str | Path) -> str:
    """The path as one would type it from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.path.join("..", "..")) else relative


def _block(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"  {line}".rstrip() for line in lines)])


def _pairs(pairs: list[tuple[str, str]]) -> list[str]:
    """Two columns, the second wrapped."""
    width = max(len(name) for name, _ in pairs) + 2
    lines: list[str] = []
    for name, said in pairs:
        head = name.ljust(width)
        lines += textwrap.wrap(said, WIDTH - 2, initial_indent=head, subsequent_indent=" " * width) or [name]
    return lines


def _numbered(steps: list[str]) -> list[str]:
    out: list[str] = []
    for i, step in enumerate(steps, 1):
        out += textwrap.wrap(step, WIDTH - 2, initial_indent=f"{i}. ".rjust(4), subsequent_indent="    ")
    return out
