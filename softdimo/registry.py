"""Components by name: entry points `softdimo.<kind>`, imported one by one, only when a recipe names them.

A distribution may state which plugin interface it was made for, in the group `softdimo.api`, by the *name* of an entry
point: `1 = "my_package"`. A distribution that states none is taken to fit.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, cast

from softdimo import API_VERSION
from softdimo.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import Distribution, EntryPoint, EntryPoints

    from softdimo.spec import Spec

KINDS = (
    "data", "tokenizer", "text_encoder", "teacher", "features", "loss", "discriminator", "reward", "sampler", "search",
    "metric",
)  # fmt: skip
"""Kinds of component, in the order of `softdimo plugins list`."""


@cache
def _everything(path: tuple[str, ...]) -> EntryPoints:
    """One walk over all that is installed on `path`, for all kinds."""
    from importlib.metadata import entry_points  # `softdimo --help` needs none of it

    return cast("EntryPoints", entry_points())  # Python 3.11's SelectableGroups selects likewise


@cache
def _scan(path: tuple[str, ...], group: str) -> tuple[EntryPoint, ...]:
    return tuple(sorted(_everything(path).select(group=group), key=lambda e: (e.name, distribution(e))))


def installed(kind: str) -> tuple[EntryPoint, ...]:
    """Entry points of a kind, sorted by name; nothing is imported."""
    return _scan(tuple(sys.path), f"softdimo.{kind}")


@cache
def _owner(dist: Distribution | None) -> tuple[str, str]:
    return (dist.name, dist.version) if dist else ("?", "?")


def distribution(entry: EntryPoint) -> str:
    """Name of the distribution that an entry point belongs to."""
    return _owner(entry.dist)[0]


def version(entry: EntryPoint) -> str:
    """Version of the distribution that an entry point belongs to."""
    return _owner(entry.dist)[1]


def suggest(word: str, options: Iterable[str]) -> str:
    """`; did you mean `a` or `b`?`, or nothing when no option is close."""
    known = {option.lower(): option for option in options}
    close = [f"`{known[c]}`" for c in get_close_matches(word.lower(), known, n=2, cutoff=0.6)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def entry(kind: str, use: str) -> EntryPoint:
    """The entry point that `use` (`name`, or `distribution:name`) names, unimported."""
    owner, _, name = use.rpartition(":")
    found = [e for e in installed(kind) if e.name == name and owner in ("", distribution(e))]
    if not found:
        names = sorted({e.name for e in installed(kind)} | {f"{distribution(e)}:{e.name}" for e in installed(kind)})
        short = sorted({e.name for e in installed(kind)})
        near = suggest(use, names if owner else short)
        raise PluginError(f"no {kind} is called `{use}`{near} (installed: {', '.join(short) or 'none'})")
    if len(found) > 1:
        choices = " or ".join(f"`use: {distribution(e)}:{e.name}`" for e in found)
        raise PluginError(f"several distributions have a {kind} called `{use}`; write {choices}")
    return found[0]


def find(kind: str, use: str) -> type[Spec]:
    """Import the one plugin that `use` names and return its Spec class. Raises PluginError, saying what to do."""
    return load(kind, entry(kind, use))


def load(kind: str, plugin: EntryPoint) -> type[Spec]:
    """Import one entry point."""
    from softdimo.spec import Spec

    owner = distribution(plugin)
    what = f"the {kind} `{plugin.name}` of {owner}"
    versions = {e.name for e in _scan(tuple(sys.path), "softdimo.api") if distribution(e) == owner}
    if versions and str(API_VERSION) not in versions:
        made = ", ".join(sorted(versions))
        raise PluginError(f"{what} was made for plugin interface {made}, not {API_VERSION}; update {owner} or softdimo")
    try:
        found = plugin.load()
    except ImportError as error:
        extras = ",".join(plugin.extras)
        mend = f"pip install '{owner}[{extras}]'" if extras else f"install what it needs, or repair {owner}"
        raise PluginError(f"{what} cannot be imported ({error}); {mend}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"{what} is broken ({type(error).__name__}: {error}); update or repair {owner}") from error
    if not (isinstance(found, type) and issubclass(found, Spec)):
        raise PluginError(f"{what} is not a subclass of softdimo.spec.Spec but {found!r}; tell the authors of {owner}")
    return found
