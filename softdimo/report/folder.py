"""A run folder as the report reads it. Missing parts are empty; damaged ones are errors that name the file."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from softdimo.errors import CheckpointError, SoftdimoError

Json = dict[str, Any]


@dataclass(frozen=True)
class Log:
    """`log.csv`: one list per numeric column, aligned with `iteration`; NaN where a row has no value."""

    iteration: list[float] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.iteration)


@dataclass(frozen=True)
class Folder:
    """One run folder: what `softdimo run` left there."""

    path: Path

    @cached_property
    def recipe(self) -> Json:
        """The resolved recipe."""
        return self._read("recipe.yaml", yaml.safe_load)

    @property
    def recipe_text(self) -> str:
        """The resolved recipe as it was written."""
        file = self.path / "recipe.yaml"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    @cached_property
    def lock(self) -> Json:
        """Versions and hashes."""
        return self._read("lock.json", json.loads)

    @cached_property
    def evaluation(self) -> Json:
        """`eval.json`."""
        return self._read("eval.json", json.loads)

    @cached_property
    def search(self) -> Json:
        """`search.json`."""
        return self._read("search.json", json.loads)

    @cached_property
    def ended(self) -> Json:
        """`ended.json`: how far a training went that ended before its last iteration, and why."""
        return self._read("ended.json", json.loads)

    @cached_property
    def health(self) -> list[str]:
        """Lines of `health.txt`."""
        file = self.path / "health.txt"
        return [s for s in file.read_text(encoding="utf-8").splitlines() if s.strip()] if file.exists() else []

    @cached_property
    def samples(self) -> list[Path]:
        """Sample strips in the order of their iterations."""
        return sorted((self.path / "samples").glob("*.png"))

    @property
    def title(self) -> str:
        """The recipe's title, or the folder's name."""
        return str(self.recipe.get("title") or self.path.name)

    @property
    def network(self) -> str:
        """What the run trains (student, teacher, tokenizer, features), or an empty string."""
        train = self.recipe.get("train")
        return str(train.get("network", "student")) if isinstance(train, dict) else ""

    @cached_property
    def log(self) -> Log:
        """`log.csv`. A resumed run may repeat iterations: the later row counts. A row cut off by a crash is dropped."""
        file = self.path / "log.csv"
        if not file.exists():
            return Log()
        with file.open(newline="", encoding="utf-8") as handle:
            reader = csv.reader(handle)
            head = next(reader, [])
            rows = {_number(r[0]): r for r in reader if len(r) == len(head) and math.isfinite(_number(r[0]))}
        order = sorted(rows)
        columns = {name: [_number(rows[i][k]) for i in order] for k, name in enumerate(head) if k}
        return Log(order, {n: c for n, c in columns.items() if any(math.isfinite(v) for v in c)})

    @cached_property
    def stages(self) -> list[Stage]:
        """The cached runs that this one rests on, dependencies first, and itself last.

        They are found by the content of the recipes; where those are gone, by name, if only one run has that name.
        """
        from softdimo.runs.lineage import ancestry

        try:
            found = [Stage(Folder(path), made) for path, made in ancestry(self.path)]
        except SoftdimoError:
            found = _by_name(self, top=True, seen={self.path.resolve()})
        return [*found, Stage(self, made=True)]

    def _read(self, name: str, parse: Any) -> Json:
        file = self.path / name
        if not file.exists():
            return {}
        try:
            value = parse(file.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise CheckpointError(f"{file}: damaged ({error}); run the recipe again to write it anew") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{file}: damaged (not a mapping); run the recipe again to write it anew")
        return value


@dataclass(frozen=True)
class Stage:
    """A run in the history of another one."""

    folder: Folder
    made: bool
    """Whether the training needed it; else only the measurements did."""


def references(value: Any) -> Iterator[str]:
    """Path of every `{recipe: path}` inside a part of a recipe, in order."""
    if isinstance(value, dict):
        if {"recipe"} <= set(value) <= {"recipe", "set", "same_data"} and isinstance(value["recipe"], str):
            yield value["recipe"]
        else:
            for inner in value.values():
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def _by_name(folder: Folder, top: bool, seen: set[Path]) -> list[Stage]:
    """Stages by the names of recipes; only the run itself (`top`) counts what it is measured with."""
    parts = [(True, ("tokenizer", "text_encoder", "teacher", "features", "train")), (False, ("eval", "search"))][
        : 2 if top else 1
    ]
    out: list[Stage] = []
    for made, keys in parts:
        for name in references({key: folder.recipe.get(key) for key in keys}):
            path = _named(folder.path, Path(name).stem)
            if path is not None and path.resolve() not in seen:
                seen.add(path.resolve())
                found = Folder(path)
                out += [Stage(stage.folder, made) for stage in _by_name(found, False, seen)] + [Stage(found, made)]
    return out


def _named(run: Path, stem: str) -> Path | None:
    """The one run of a recipe called `stem`, cached or not; None where there is none, or more than one."""
    base = run.parent if run.parent.name == "cache" else run.parent / "cache"
    found = [p for p in base.glob(f"{stem}-*") if p.name.rpartition("-")[0] == stem and p.is_dir()]
    if (base.parent / stem / "recipe.yaml").is_file():
        found.append(base.parent / stem)
    return found[0] if len(found) == 1 else None


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
