"""pydantic's complaints, said where the value was written and in words for people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from softdimo.errors import PluginError
from softdimo.recipe.nodes import Fault, Node, dotted
from softdimo.registry import find, suggest
from softdimo.spec import component

Path = tuple[str | int, ...]
Details = dict[str, Any]

_WANTED = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "tuple": "a list", "set": "a list", "frozen_set": "a list", "iterable": "a list", "dict": "a mapping",
    "mapping": "a mapping", "model": "a mapping", "none": "null", "path": "a path",
}  # fmt: skip
_LIMITS = {
    "greater_than": "greater than {gt:g}", "greater_than_equal": "at least {ge:g}", "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}", "finite_number": "finite", "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "at least {min_length} characters long", "string_too_long": "at most {max_length} long",
    "string_pattern_mismatch": "text without `/`, `\\` and control characters, matching {pattern}",
}  # fmt: skip
_EXACT = ("missing", "recipe")
"""Errors whose location is a key path throughout, even where the file has no such key."""


def translate(error: ValidationError, root: Node, model: type[BaseModel]) -> list[Fault]:
    """Every error as a located fault; the arms of a union are told as one."""
    out: list[Fault] = []
    unions: dict[Path, dict[str, list[tuple[Path, Details]]]] = {}
    for raw in error.errors(include_url=False, include_input=False):
        details: Details = dict(raw)
        path, fork = _resolve(details, root)
        if details["type"] == "too_short" and len(at(root, path).value) >= details["ctx"]["min_length"]:
            continue  # an echo of faults in its items
        if fork is None:
            out.append(_fault(details, path, root, model))
        else:
            unions.setdefault(path[: fork[0]], {}).setdefault(fork[1], []).append((path, details))
    for prefix, arms in unions.items():
        fitting = [arm for arm in arms.values() if not any(p == prefix and _wanted(d) for p, d in arm)]
        if fitting:
            out.extend(_fault(d, p, root, model) for p, d in min(fitting, key=len))
        else:
            wanted = dict.fromkeys(_wanted(d) for arm in arms.values() for p, d in arm if p == prefix and _wanted(d))
            node = at(root, prefix)
            out.append(Fault(node.anchor, prefix, f"must be {' or '.join(wanted)}, not {describe(node.value)}"))
    return out


def describe(value: Any) -> str:
    """A value in plain words, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value}"[:40]
    if isinstance(value, str):
        return f"the text `{value}`" if len(value) <= 60 else f"the text `{value[:57]}...`"
    return "a list" if isinstance(value, list) else "a mapping"


def _resolve(details: Details, root: Node) -> tuple[Path, tuple[int, str] | None]:
    """The key path of an error, and (position, label) of the first union arm in its location, if there is one."""
    if details["type"] == "recipe":
        return details["loc"], None
    path: list[str | int] = []
    fork: tuple[int, str] | None = None
    node: Node | None = root
    for i, part in enumerate(details["loc"]):
        child = node.child(part) if node is not None else None
        if child is not None:
            node = child
            path.append(part)
        elif details["type"] == "missing" and i == len(details["loc"]) - 1:
            path.append(part)
        elif fork is None and part != "[key]":
            fork = (len(path), str(part))
    return tuple(path), fork


def at(root: Node, path: Path) -> Node:
    """The deepest value that was written on the way to `path`."""
    node = root
    for part in path:
        child = node.child(part)
        if child is None:
            break
        node = child
    return node


def _fault(details: Details, path: Path, root: Node, model: type[BaseModel]) -> Fault:
    node = at(root, path)
    if details["type"] == "extra_forbidden":
        return Fault(node.key or node.mark, path, _unknown(str(path[-1]), settings_at(model, root, path[:-1]), model))
    if details["type"] == "missing":
        return Fault(node.anchor, path, _missing(path, settings_at(model, root, path[:-1])))
    return Fault(node.anchor, path, _words(details, node))


def _words(details: Details, node: Node) -> str:
    code, context = details["type"], details.get("ctx", {})
    if code in ("value_error", "assertion_error"):
        return str(context.get("error", details["msg"]))
    if code == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        near = suggest(node.value, options) if isinstance(node.value, str) else ""
        return f"must be {context['expected'].replace(chr(39), '`')}, not {describe(node.value)}{near}"
    if code == "too_short" or code == "too_long":
        bound = f"at least {context['min_length']}" if code == "too_short" else f"at most {context['max_length']}"
        return f"must have {bound} items, has {context['actual_length']}"
    if code in _LIMITS:
        return f"must be {_LIMITS[code].format(**context)}, not {describe(node.value)}"
    if code in ("component", "coerced"):
        return f"{details['msg']}, not {describe(node.value)}"
    wanted = _wanted(details)
    return f"must be {wanted}, not {describe(node.value)}" if wanted else str(details["msg"])


def _wanted(details: Details) -> str:
    """What an error of type asks for; empty for errors of other sorts."""
    code: str = details["type"]
    if code == "literal_error":
        return str(details["ctx"]["expected"]).replace("'", "`")
    stem = re.sub(r"_(type|parsing|parsing_size|from_float|required|attributes_type|unicode|sub_type)$", "", code)
    return _WANTED.get(stem, "") if stem != code else ""


def _missing(path: Path, owner: type[BaseModel] | None) -> str:
    if isinstance(path[-1], int):
        return "is missing: the list is too short"
    field = next((f for n, f in owner.model_fields.items() if (f.alias or n) == path[-1]), None) if owner else None
    return f"is missing: {field.description.splitlines()[0]}" if field and field.description else "is missing"


def _unknown(key: str, owner: type[BaseModel] | None, model: type[BaseModel]) -> str:
    if owner is None:
        return "unknown key"
    known = [f.alias or name for name, f in owner.model_fields.items()]
    homes = [dotted((*path, key)) for path, cls in _sections(model) if key in cls.model_fields and cls is not owner]
    near = f"; did you mean `{homes[0]}`?" if homes else suggest(key, known)
    return f"unknown key{near} (known: {', '.join(known)})"


def _sections(model: type[BaseModel], path: Path = ()) -> Iterator[tuple[Path, type[BaseModel]]]:
    """The fixed sections of the model, outermost first."""
    yield path, model
    for name, field in model.model_fields.items():
        listed = [target for item in _items(field.annotation) for target in _targets(item)]
        for target in _targets(field.annotation):
            fixed = isinstance(target, type) and target not in listed
            if fixed and not any(isinstance(m, component) for m in field.metadata):
                yield from _sections(target, (*path, field.alias or name))


def settings_at(model: type[BaseModel], root: Node, path: Path) -> type[BaseModel] | None:
    """The class that validates the mapping at `path`, if that can be told."""
    kept: Any = model
    node: Node | None = root
    for part in path:
        if isinstance(part, str):
            owner = _settle(list(_targets(kept)), node)
            fields = owner.model_fields.items() if owner else ()
            field = next((f for name, f in fields if (f.alias or name) == part), None)
            if field is None:
                return None
            slots = [m for m in field.metadata if isinstance(m, component)]
            kept = Annotated[BaseModel, slots[0]] if slots else field.annotation
        elif lists := list(_items(kept)):
            kept = Union[tuple(lists)]  # noqa: UP007  (made at run time)
        node = node.child(part) if node else None
    return _settle(list(_targets(kept)), node)


def _items(annotation: Any) -> Iterator[Any]:
    """Types of the items of the lists inside a type."""
    origin = get_origin(annotation)
    if origin in (tuple, list):
        yield from (a for a in get_args(annotation) if a is not Ellipsis)
    elif origin is Annotated:
        yield from _items(annotation.__origin__)
    elif origin is not None:
        for argument in get_args(annotation):
            yield from _items(argument)


def _settle(targets: list[Any], node: Node | None) -> type[BaseModel] | None:
    for target in targets:
        if not isinstance(target, component):
            return target  # type: ignore[no-any-return]
        use = node.child("use") if node else None
        if use is None:
            continue
        try:
            return find(target.kind, str(use.value))
        except PluginError:
            return None
    return None


def _targets(annotation: Any) -> Iterator[Any]:
    """Settings classes and component slots inside a type."""
    if get_origin(annotation) is Annotated:
        slots = [m for m in annotation.__metadata__ if isinstance(m, component)]
        yield from slots or _targets(annotation.__origin__)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _targets(argument)
