"""A tiny version of any recipe: the same path through the code, in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from softdimo.memory.sizes import slow_in_bf16
from softdimo.recipe.model import Recipe, Row, Start
from softdimo.spec import Player, Settings, Spec

Path = tuple[str | int, ...]
SHARE = 2
"""Samples of a row and seed in a tiny table: the tokenizer that decodes them is nearly as large as any."""
POOL = 4
"""Random starts that the units of several rewards are measured on."""
REFERENCE = 8
"""Real images in it."""


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Settings]]:
    """Every Settings inside a value with its key path, outermost first."""
    if isinstance(value, Settings):
        yield path, value
        for name, field in type(value).model_fields.items():
            yield from walk(getattr(value, name), (*path, field.alias or name))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from walk(item, (*path, i))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from walk(item, (*path, key))


def rewrite(value: Any, change: Callable[[Settings], Settings]) -> Any:
    """A copy with `change` applied to every Settings, innermost first."""
    if isinstance(value, Settings):
        update = {name: rewrite(getattr(value, name), change) for name in type(value).model_fields}
        return change(value.model_copy(update=update))
    if isinstance(value, list | tuple):
        return type(value)(rewrite(item, change) for item in value)
    if isinstance(value, Mapping):
        return {key: rewrite(item, change) for key, item in value.items()}
    return value


def smoke(recipe: Recipe) -> Recipe:
    """Two iterations of two samples, two seeds, two samples of each, two values of a sweep, two conditions of a search.

    A processor without instructions for bf16 computes in float32. Components shrink by their own `Spec.smoke`. Where
    the teacher leaves out its file of weights, whose sizes are not its own any more, students leave out theirs.
    """
    small: Recipe = rewrite(recipe, _shrink)
    if recipe.teacher and small.teacher and recipe.teacher.weights is not None and small.teacher.weights is None:
        small = rewrite(small, _without_file)
    update: dict[str, Any] = {}
    if small.train is not None:
        start = small.train.start
        update["train"] = small.train.model_copy(
            update={
                "iterations": min(2, small.train.iterations),
                "batch_size": min(2, small.train.batch_size),
                "start": start.model_copy(update={"lead": min(1, start.lead)}),
                "log_every": 1,
                "sample_every": min(2, small.train.iterations),
            }
        )
    if small.eval is not None:
        seeds = small.eval.seeds[:2]
        samples = min(SHARE * len(seeds), small.eval.samples)
        update["eval"] = small.eval.model_copy(
            update={
                "samples": samples,
                "reference": min(REFERENCE, small.eval.reference or REFERENCE),
                "batch_size": min(samples, small.eval.batch_size),
                "seeds": seeds,
                "rows": tuple(
                    row.model_copy(update={"sweep": {key: values[:2] for key, values in row.sweep.items()}})
                    for row in small.eval.rows
                ),
            }
        )
    if small.search is not None:
        conditions = min(2, small.search.conditions)
        few = {"conditions": conditions, "batch_size": min(conditions, small.search.batch_size)}
        pool = small.search.pool and min(POOL, small.search.pool)
        update["search"] = small.search.model_copy(update=few | {"pool": pool})
    hardware = small.hardware
    if hardware.precision.startswith("bf16") and slow_in_bf16(hardware.accelerator):
        update["hardware"] = hardware.model_copy(update={"precision": "32-true"})
    return small.model_copy(update=update)


def _without_file(settings: Settings) -> Settings:
    """A student from a file becomes a copy of the teacher, and training starts from that."""
    if isinstance(settings, Row) and isinstance(settings.weights, str):
        return settings.model_copy(update={"of": "teacher", "weights": None})
    if isinstance(settings, Start) and isinstance(settings.from_, str):
        return settings.model_copy(update={"from_": None})
    return settings


def _shrink(settings: Settings) -> Settings:
    if isinstance(settings, Player):
        return settings.model_copy(update={"accumulate": 1})
    return settings.smoke() if isinstance(settings, Spec) else settings
