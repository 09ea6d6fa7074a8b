"""Faults that only the recipe as a whole can show, each with the path of the key to mend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from softdimo.registry import suggest
from softdimo.spec import GradientRatio

if TYPE_CHECKING:
    from softdimo.recipe.model import Eval, Recipe, Row, SearchSection, Train

Found = Iterator[tuple[tuple[str | int, ...], str]]


def faults(recipe: Recipe) -> Found:
    """Every cross-field fault as (path, what is wrong and what to do)."""
    if recipe.teacher is not None and recipe.tokenizer is None:
        yield ("teacher",), "a teacher works on tokens: add a `tokenizer:` section"
    if recipe.features is not None and (recipe.train is None or recipe.train.network != "features"):
        yield ("features",), "is used only when it is what is trained; add `train.network: features`, or remove it"
    if recipe.train is not None:
        yield from _train(recipe, recipe.train)
    if recipe.eval is not None:
        yield from _eval(recipe, recipe.eval)
    if recipe.search is not None:
        yield from _search(recipe, recipe.search)


def _train(recipe: Recipe, train: Train) -> Found:
    network = "teacher" if train.network == "student" else train.network
    if getattr(recipe, network) is None:
        yield ("train", "network"), f"training the {train.network} needs a `{network}:` section"
    if train.network != "teacher":
        for name in ("label_smoothing", "label_drop"):
            if getattr(train, name) != type(train).model_fields[name].default:
                yield ("train", name), f"belongs to the training of a teacher, but `train.network` is {train.network}"
    if train.sampler is not None and train.network not in ("student", "teacher"):
        yield ("train", "sampler"), f"draws samples of a teacher, but `train.network` is {train.network}"
    if train.network != "student":
        if train.dropout:
            yield ("train", "dropout"), f"is about the student, but `train.network` is {train.network}"
        if train.terms:
            yield ("train", "terms"), f"belong to the student's L_gen, but `train.network` is {train.network}"
        if train.start.lead:
            yield ("train", "start", "lead"), f"there are no critics when `train.network` is {train.network}"
        return
    if not train.terms:
        yield ("train", "terms"), "training a student needs at least one term, for example `- use: dimo`"
    names = [term.name for term in train.terms]
    yield from _twice(names, ("train", "terms"), "name", "terms; give one a `name:` of its own")
    constant = [t.name for t in train.terms if not isinstance(t.weight, GradientRatio)]
    for i, term in enumerate(train.terms):
        path = ("train", "terms", i, "weight", "of")
        if not isinstance(term.weight, GradientRatio) or term.weight.of in constant:
            continue
        of = term.weight.of
        if of == term.name:
            yield path, f"`{of}` is this term itself; name another one, whose weight is a number"
        elif of in names:
            yield path, f"the weight of `{of}` is itself a ratio; name a term whose weight is a number"
        else:
            others = [name for name in names if name != term.name]
            known = ", ".join(others) or "none"
            yield path, f"there is no other term called `{of}`{suggest(of, others)} (other terms: {known})"


def _eval(recipe: Recipe, section: Eval) -> Found:
    yield from _twice([row.name for row in section.rows], ("eval", "rows"), "name", "rows")
    seen: set[int] = set()
    for i, seed in enumerate(section.seeds):
        if seed in seen:
            yield ("eval", "seeds", i), f"seed {seed} is given twice; repetitions need different seeds"
        seen.add(seed)
    for i, row in enumerate(section.rows):
        for name, what in _row(recipe, row):
            yield ("eval", "rows", i, name), what
        for path, what in _sweep(row):
            yield ("eval", "rows", i, "sweep", *path), what


def _row(recipe: Recipe, row: Row) -> Iterator[tuple[str, str]]:
    trained = recipe.train.network if recipe.train else None
    if row.of in ("real", "reconstruction"):
        if row.sampler is not None:
            yield "sampler", f"a row of {row.of} images samples nothing; remove it"
        if row.weights is not None:
            yield "weights", f"a row of {row.of} images uses no network's weights; remove it"
        if row.of == "reconstruction" and recipe.tokenizer is None:
            yield "of", "reconstructions need a `tokenizer:` section"
    elif recipe.teacher is None:
        yield "of", f"samples of a {row.of} need a `teacher:` section"
    elif row.of == "teacher" and row.sampler is None:
        yield "of", "samples of the teacher need a `sampler:`, for example {use: maskgit}"
    elif row.of == "student" and row.weights is None and trained != "student":
        yield "of", "no student is trained here: give its `weights:`"
    if row.decode == "soft" and row.of != "student":
        yield "decode", "soft decoding is for the student's one step; use hard"


def _sweep(row: Row) -> Found:
    if len(row.sweep) > 1:
        yield (), f"sweeps one setting at a time, not {' and '.join(row.sweep)}"
        return
    for key, values in row.sweep.items():
        if row.sampler is None:
            yield (), "sweeps a setting of the sampler, and this row has none; remove it, or give the row a `sampler:`"
            return
        known = [field.alias or name for name, field in type(row.sampler).model_fields.items() if name != "use"]
        if key not in known:
            near = suggest(key, known)
            yield (key,), f"the sampler `{row.sampler.use}` has no setting `{key}`{near} (it has: {', '.join(known)})"
            return
        for i, value in enumerate(values):
            if value in values[:i]:
                yield (key, i), f"{value} is given twice"
            try:
                row.sampled(key, value)
            except ValidationError as error:
                yield (key, i), f"the sampler `{row.sampler.use}` does not take it: {error.errors()[0]['msg']}"


def _search(recipe: Recipe, section: SearchSection) -> Found:
    if recipe.teacher is None:
        yield ("search",), "searching the student's input needs `teacher:` and `tokenizer:` sections"
    elif section.weights is None and (recipe.train is None or recipe.train.network != "student"):
        yield ("search",), "no student is trained here: give its `weights:`"
    yield from _twice([m.name for m in section.methods], ("search", "methods"), "name", "methods")
    yield from _twice([r.name for r in section.rewards()], ("search", "score"), "name", "rewards; give one a `name:`")
    yield from _twice([h.name for h in section.held_out], ("search", "held_out"), "name", "held-out rewards")


def _twice(names: Sequence[str], path: tuple[str, ...], key: str, what: str) -> Found:
    for i, name in enumerate(names):
        if name in names[:i]:
            yield (*path, i, key), f"`{name}` names two {what}"
