"""Reading a recipe: bases below it, overrides above it, and every fault in its place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from softdimo.errors import RecipeError
from softdimo.recipe.faults import at, translate
from softdimo.recipe.layers import override, read
from softdimo.recipe.model import Recipe
from softdimo.recipe.nodes import Fault, Mark, Node, dotted
from softdimo.recipe.shrink import rewrite, walk
from softdimo.recipe.shrink import smoke as small
from softdimo.spec import RecipeRef, Settings


@dataclass(frozen=True)
class Loaded:
    """A valid recipe and where it came from."""

    recipe: Recipe
    path: Path
    """The recipe's file, absolute."""
    smoke: bool = False
    """Whether this is the tiny version; recipes that it refers to are then tiny too."""
    sources: tuple[Path, ...] = ()
    """Every file it was read from: itself, its bases, and the recipes that it refers to (absolute)."""
    tree: Node | None = field(default=None, repr=False, compare=False)
    """What was written, with positions."""

    def fault(self, path: tuple[str | int, ...], what: str) -> RecipeError:
        """An error at the place where the key at `path` (or the nearest one above it) was written."""
        if self.tree is None:
            return RecipeError(f"{self.path} {dotted(path)}: {what}")
        return _error([Fault(at(self.tree, path).anchor, path, what)])


def load(path: str | os.PathLike[str], overrides: Sequence[str] = (), smoke: bool = False) -> Loaded:
    """Read a recipe (or the recipe of a run folder), apply `key.path=value` overrides, and validate all of it.

    Raises RecipeError with one `file:line:col path: what is wrong` line per fault: in this file, in its bases, in the
    overrides, and in the recipes that it refers to as `{recipe: other.yaml}`.
    """
    return _Reader(smoke).load(os.fspath(path), overrides, ())


def load_ref(ref: RecipeRef, smoke: bool = False) -> Loaded:
    """Load the recipe that a reference names, with the reference's overrides."""
    return load(ref.recipe, ref.overrides, smoke)


def _on_same_data(recipe: Recipe) -> Recipe:
    """Write this recipe's data set into the references that ask for it, so that each stands for itself."""

    def change(settings: Settings) -> Settings:
        if isinstance(settings, RecipeRef) and settings.same_data and "data" not in settings.set:
            data = recipe.data.model_dump(mode="json", by_alias=True)
            return settings.model_copy(update={"set": settings.set | {"data": data}})
        return settings

    out: Recipe = rewrite(recipe, change)
    return out


@dataclass
class _Reader:
    smoke: bool
    done: dict[str, Loaded] = field(default_factory=dict)

    def load(self, name: str, overrides: Sequence[str], above: tuple[str, ...], marks: Sequence[Mark] = ()) -> Loaded:
        if os.path.isdir(name) and os.path.isfile(os.path.join(name, "recipe.yaml")):
            name = os.path.join(name, "recipe.yaml")
        faults: list[Fault] = []
        sources: list[Path] = []
        tree = read(name, None, (), sources, faults)
        if tree is None:
            raise _error(faults)
        tree = override(tree, overrides, faults, marks)
        try:
            recipe = Recipe.model_validate(tree.plain())
        except ValidationError as error:
            unreadable = {fault.path for fault in faults}
            found = [fault for fault in translate(error, tree, Recipe) if fault.path not in unreadable]
            raise _error(faults + found) from error
        if faults:
            raise _error(faults)
        recipe = _on_same_data(recipe)
        path = Path(os.path.abspath(name))
        referred = self.references(recipe, tree, (*above, os.path.realpath(path)))
        files = dict.fromkeys([*sources, *(p for other in referred for p in other.sources)])
        return Loaded(small(recipe) if self.smoke else recipe, path, self.smoke, tuple(files), tree)

    def references(self, recipe: Recipe, tree: Node, chain: tuple[str, ...]) -> list[Loaded]:
        """Load the recipes that this one refers to, so that their faults show before anything runs."""
        faults: list[Fault] = []
        messages: list[str] = []
        out: list[Loaded] = []
        for path, ref in walk(recipe):
            if not isinstance(ref, RecipeRef):
                continue
            where = at(tree, (*path, "recipe"))
            real = os.path.realpath(ref.recipe)
            if real in chain:
                loop = " -> ".join(os.path.basename(p) for p in (*chain[chain.index(real) :], real))
                faults.append(Fault(where.mark, (*path, "recipe"), f"is circular: {loop}"))
                continue
            if not os.path.exists(real):
                faults.append(Fault(where.mark, (*path, "recipe"), f"{ref.recipe} does not exist"))
                continue
            try:
                if ref.key not in self.done:
                    written = [at(tree, (*path, "set", key)) for key in ref.set]
                    marks = [node.key or node.mark for node in written]
                    self.done[ref.key] = self.load(ref.recipe, ref.overrides, chain, marks)
            except RecipeError as error:
                messages.append(str(error))
                continue
            out.append(self.done[ref.key])
            trained = self.done[ref.key].recipe.train
            if trained is None:
                faults.append(Fault(where.mark, (*path, "recipe"), "has no `train:` section, so it makes no weights"))
            elif len(path) > 1 and path[-2] in _NETWORKS and trained.network != path[-2]:
                what = f"trains a {trained.network}, but weights of a {path[-2]} are needed here"
                faults.append(Fault(where.mark, (*path, "recipe"), what))
        if faults or messages:
            raise RecipeError("\n".join(dict.fromkeys([*_lines(faults), *messages])))
        return out


_NETWORKS = ("teacher", "tokenizer", "features")


def _lines(faults: Sequence[Fault]) -> list[str]:
    ordered = sorted(faults, key=lambda f: (f.mark.source, f.mark.line, f.mark.column))
    return list(dict.fromkeys(str(fault) for fault in ordered))


def _error(faults: Sequence[Fault]) -> RecipeError:
    return RecipeError("\n".join(_lines(faults)))
