"""`softdimo check`: what can be known about a run before it starts. Nothing is trained, nothing downloaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable
from torch import nn

from softdimo.build import Components, learns_from_tokens
from softdimo.engine.mixed import lighten, lightens
from softdimo.errors import SoftdimoError
from softdimo.kinds import Data, Features, Teacher, Term, TokenShape
from softdimo.memory import sizes
from softdimo.memory.sizes import Share, human
from softdimo.memory.turns import Phase, fit_phase, student_phases
from softdimo.recipe import Loaded
from softdimo.recipe.model import Train
from softdimo.recipe.shrink import walk
from softdimo.report.scale import number
from softdimo.runs import jobs
from softdimo.spec import NetworkSpec, RecipeRef, Spec

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Estimate:
    """What a run needs, in bytes."""

    shares: list[Share]
    phases: list[Phase]
    data: int
    """Data set and tokens in the machine's memory."""
    device: str
    available: int
    notes: list[str]

    @property
    def networks(self) -> int:
        """Weights, optimizer state, averages, and gradients: one player's at a time, and those that wait."""
        lasting = sum(s.total if s.accumulates else s.total - s.gradients for s in self.shares)
        return lasting + max((s.gradients for s in self.shares if not s.accumulates), default=0)

    @property
    def total(self) -> int:
        """Networks and the largest turn, and the data where it shares their memory."""
        peak = max((p.size for p in self.phases), default=0)
        return self.networks + peak + (self.data if self.device == "CPU" else 0)

    @property
    def fits(self) -> bool:
        """Whether that is free on the device."""
        return self.total <= self.available


def check(loaded: Loaded, console: Console | None = None) -> Estimate:
    """Validate a recipe and those that it needs, build their networks on the `meta` device, and print what a run takes.

    Raises RecipeError, located in the file, where settings do not fit together: shapes that are impossible, or weights
    made for another network; PluginError or DataError where a package or a data set is missing; WeightsError where a
    file of weights is.
    """
    with sizes.Blank():
        known: dict[str, Data] = {}
        parts = _parts(loaded, known)
        others = {key: _parts(need.loaded, known) for key, need in jobs.needed(loaded).items()}
        _fitting_weights(loaded, parts, others)
        estimate = _estimate(loaded, parts)
    _print(loaded, parts.tokens, estimate, console or Console(width=None if sys.stdout.isatty() else 120))
    return estimate


def _parts(loaded: Loaded, known: dict[str, Data]) -> Components:
    """Components on `meta`, each network and each data set once; a fault is told at its place in the recipe."""
    parts = Components(loaded.recipe, "meta")
    key = loaded.recipe.data.model_dump_json()
    with _located(loaded, ("data",)):
        known[key] = parts.__dict__["given"] = known.get(key) or parts.given
    with _located(loaded, ("tokenizer",)):
        _ = parts.tokens
        _ = parts.tokenizer
    if loaded.recipe.text_encoder is not None:
        with _located(loaded, ("text_encoder",)):
            parts.make(loaded.recipe.text_encoder)
    with _located(loaded, ("teacher",)):
        _ = parts.teacher
    if loaded.recipe.features is not None:
        with _located(loaded, ("features",)):
            parts.make(loaded.recipe.features)
    for path, spec in _components(loaded):
        with _located(loaded, path):
            _build(parts, spec)
    return parts


def _components(loaded: Loaded) -> Iterator[tuple[KeyPath, Spec]]:
    """Components inside the sections, outermost ones only: they build what they hold."""
    outer: list[KeyPath] = []
    for path, settings in walk(loaded.recipe):
        inside = any(path[: len(p)] == p for p in outer)
        if (
            isinstance(settings, Spec)
            and path[0] in ("train", "eval", "search")
            and "methods" not in path
            and not inside
        ):
            outer.append(path)
            yield path, settings


def _build(parts: Components, spec: Spec) -> Any:
    """A component, or None where building it needs real numbers."""
    try:
        return parts.make(spec) if isinstance(spec, NetworkSpec) else spec.build(parts.context())
    except (RuntimeError, NotImplementedError) as error:
        if "meta" in str(error).lower():
            return None
        raise


class _located:  # noqa: N801 (read as a word: with _located(...))
    """Turns what a component says about its settings into an error at their place in the recipe."""

    def __init__(self, loaded: Loaded, path: KeyPath) -> None:
        self.loaded, self.path = loaded, path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or (isinstance(error, SoftdimoError) and error.code != 2):
            return
        if isinstance(error, SoftdimoError | ValueError | TypeError | RuntimeError | AssertionError):
            what = str(error) or type(error).__name__
            field = what.split(":", 1)[0]
            path = (
                (*self.path, *field.split(".")) if field.replace(".", "").isidentifier() and ":" in what else self.path
            )
            raise self.loaded.fault(path, what.split(":", 1)[1].strip() if path != self.path else what) from error


def _fitting_weights(loaded: Loaded, parts: Components, others: Mapping[str, Components]) -> None:
    """Weights of other recipes must fit the network that takes them; files must exist."""
    recipe = loaded.recipe
    for path, settings in walk(recipe):
        if isinstance(settings, NetworkSpec):
            weights, spec = settings.weights, settings
        elif path[-1:] == ("start",) and recipe.train is not None:
            weights, trained = recipe.train.start.from_, recipe.train.network
            spec = getattr(recipe, "teacher" if trained == "student" else trained)
        elif getattr(settings, "of", "") in ("student", "teacher") and recipe.teacher is not None:
            weights, spec = settings.weights, recipe.teacher  # type: ignore[attr-defined]
        else:
            continue
        place = (*path, "from" if path[-1:] == ("start",) else "weights")
        if isinstance(weights, str) and "://" not in weights and not Path(weights).exists():
            raise loaded.fault(place, f"{weights} does not exist")
        if isinstance(weights, RecipeRef):
            _same_shapes(loaded, place, parts.make(spec), weights, others[weights.key])
            if place[-1] == "from" and recipe.train is not None and recipe.train.start.critics:
                _same_critics(loaded, place, parts, weights, others[weights.key])


def _same_shapes(loaded: Loaded, place: KeyPath, net: nn.Module, ref: RecipeRef, other: Components) -> None:
    train = other.recipe.train
    spec = getattr(other.recipe, "teacher" if train is None or train.network == "student" else train.network)
    if told := _difference(net, other.make(spec)):
        raise loaded.fault(
            place, f"{Path(ref.recipe).name} makes weights of another shape ({told}); give both the same settings"
        )


def _same_critics(loaded: Loaded, place: KeyPath, parts: Components, ref: RecipeRef, other: Components) -> None:
    terms = [{} if p.recipe.train is None else {t.name: t for t in p.recipe.train.terms} for p in (parts, other)]
    for name in terms[0].keys() & terms[1].keys():
        mine, theirs = (getattr(_build(p, t[name]), "critic", None) for p, t in zip((parts, other), terms, strict=True))
        if mine is not None and theirs is not None and (told := _difference(mine, theirs)):
            there = f"the critic of `{name}` is another network in {Path(ref.recipe).name} ({told})"
            raise loaded.fault(place, f"{there}; give the term the same settings, or set train.start.critics: false")


def _difference(net: nn.Module, other: nn.Module) -> str:
    """The first weight whose shape differs between networks here and in another recipe; empty if none does."""
    mine, theirs = ({k: tuple(v.shape) for k, v in each.state_dict().items()} for each in (net, other))
    wrong = [k for k in [*mine, *theirs] if mine.get(k) != theirs.get(k)]
    if not wrong:
        return ""
    return f"`{wrong[0]}` is {theirs.get(wrong[0], 'missing')} there and {mine.get(wrong[0], 'missing')} here"


def _estimate(loaded: Loaded, parts: Components) -> Estimate:
    recipe = loaded.recipe
    train, precision = recipe.train, recipe.hardware.precision
    shares: list[Share] = []
    phases: list[Phase] = []
    trained = train.network if train is not None else ""
    if train is not None:
        with _located(loaded, ()):
            shares, phases = _student(parts, train) if trained == "student" else _fit(parts, train)
    for kind in ("tokenizer", "text_encoder", "teacher", "features"):
        spec = getattr(recipe, kind)
        if spec is not None and kind != trained:
            shares.append(sizes.share(f"{kind.replace('_', ' ')} ({spec.use})", parts.make(spec), None, precision))
    shares += _judges(parts, shares)
    tokens = 0
    if train is not None and learns_from_tokens(train) and parts.tokens is not None and parts.data.has_images:
        tokens = len(parts.data.source("train")) * parts.tokens.units * 2
    device, free = sizes.available(recipe.hardware.accelerator)
    notes = [f"{p.name}: {p.unknown}" for p in phases if p.unknown]
    return Estimate(shares, phases, sizes.held(parts.given) + tokens, device, free, notes)


def _student(parts: Components, train: Train) -> tuple[list[Share], list[Phase]]:
    """Student and critics, and their turns."""
    precision, averages = parts.recipe.hardware.precision, len(train.ema.half_lives)
    context = parts.context()
    student = context.copy_teacher()
    shares = [sizes.share("student", student, train.player, precision, averages)]
    terms: dict[str, Term] = {}
    for spec in train.terms:
        term: Term | None = _build(parts, spec)
        if term is not None:
            parts.require_tokens(spec, term)
            terms[spec.name] = term
        if term is not None and term.critic is not None:
            shares.append(sizes.share(f"{spec.name}'s critic", term.critic, term.player, precision))
    cond, teacher = parts.data.ready(parts.data.conditions(train.batch_size)), parts.require_teacher()
    hardware, device = parts.recipe.hardware, sizes.device(parts.recipe.hardware.accelerator)
    if lightens(hardware):
        lighten(teacher)
    return shares, student_phases(student, teacher, parts.tokenizer, terms, cond, hardware, device)


def _fit(parts: Components, train: Train) -> tuple[list[Share], list[Phase]]:
    """A network trained on data, and its turn."""
    spec = getattr(parts.recipe, train.network)
    net: nn.Module = parts.fresh(spec)
    share = sizes.share(f"{train.network} ({spec.use})", net, train.player, parts.recipe.hardware.precision,
                         len(train.ema.half_lives))  # fmt: skip
    cond = parts.data.ready(parts.data.conditions(train.batch_size))
    image, hardware = parts.data.image, parts.recipe.hardware
    pictures, device = torch.empty(len(cond), *image, device="meta"), sizes.device(hardware.accelerator)
    if isinstance(net, Teacher):
        e = torch.empty(len(cond), net.shape.L, net.width, device="meta", requires_grad=True)
        turn = fit_phase(net, lambda net, given: net(*given), (e, cond), hardware, device)
    elif isinstance(net, Features):
        turn = fit_phase(net, lambda net, given: net(given), pictures, hardware, device)
    else:
        turn = fit_phase(net, lambda net, given: net.loss(given, torch.Generator(), 0.5), pictures, hardware, device)
    return [share], [turn]


def _judges(parts: Components, shares: list[Share]) -> list[Share]:
    """Feature networks and the like, inside terms, metrics and rewards: each once."""
    precision, seen, out = parts.recipe.hardware.precision, set(), []
    roots = [parts.recipe.tokenizer, parts.recipe.text_encoder, parts.recipe.teacher, parts.recipe.features]
    for path, spec in walk(parts.recipe):
        if not isinstance(spec, NetworkSpec) or spec in roots or "discriminator" in path:
            continue
        key = spec.model_dump_json()
        net = None if key in seen else _build(parts, spec)
        seen.add(key)
        if isinstance(net, nn.Module):
            where = "in training" if path[0] == "train" else "to measure"
            out.append(sizes.share(f"{spec.use} {where}", net, None, precision))
    return out


def _print(loaded: Loaded, tokens: TokenShape | None, estimate: Estimate, console: Console) -> None:
    recipe = loaded.recipe
    console.print(f"{recipe.title}", style="bold", markup=False, highlight=False)
    if tokens is not None:
        groups = f"{tokens.G} group{'s' if tokens.G > 1 else ''} of {tokens.V} classes"
        console.print(f"tokens: {tokens.rows} x {tokens.cols} positions, {groups}", highlight=False)
    heads = ("network", "parameters", "weights", "gradients", "optimizer", "averages", "total")
    made = RichTable(*heads, box=None, pad_edge=False)
    for column in made.columns[1:]:
        column.justify = "right"
    made.columns[0].no_wrap = True
    for s in estimate.shares:
        cells = [human(v) if v else "–" for v in (s.weights, s.gradients, s.optimizer, s.ema)]
        made.add_row(
            f"{s.name}{'' if s.role == 'trained' else ', frozen'}", _count(s.parameters), *cells, human(s.total)
        )
    console.print(made)
    if recipe.train is not None:
        console.print(f"activations and logits, batch {recipe.train.batch_size}:", highlight=False)
    for phase in estimate.phases:
        console.print(f"  {phase.name}: {human(phase.size)}{' (in part)' if phase.unknown else ''}", highlight=False)
    console.print(f"data and tokens in memory: {human(estimate.data)}", highlight=False)
    for note in estimate.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    verdict = "fits" if estimate.fits else "does NOT fit; lower train.batch_size, or take a larger device"
    console.print(
        f"about {human(estimate.total)} of {human(estimate.available)} free on {estimate.device}: {verdict}",
        style="green" if estimate.fits else "red", highlight=False,
    )  # fmt: skip


def _count(n: int) -> str:
    """`305 M`, `163 k`, `12`."""
    for size, unit in ((1_000_000_000, " G"), (1_000_000, " M"), (1000, " k")):
        if n >= size:
            return f"{number(n / size)}{unit}"
    return str(n)
