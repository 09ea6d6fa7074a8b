"""A recipe's layers: the files below it (`base:`), itself, and the overrides above it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from softdimo.recipe.faults import describe
from softdimo.recipe.nodes import Fault, Mark, Node, parse

MAX_DEPTH = 50
"""Keys in the path of an override."""


def read(name: str, at: Mark | None, chain: tuple[str, ...], sources: list[Path], faults: list[Fault]) -> Node | None:
    """A file with its bases merged in. `at` is where it was named; None (with faults appended) if it cannot be read."""
    path = Path(os.path.abspath(name))
    here = Mark(name, path.parent, 1, 1)
    where = at or Mark(name, path.parent)
    keys: tuple[str, ...] = ("base",) if at else ()
    try:
        data = path.read_bytes()
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:
        faults.append(Fault(where, keys, f"{name if at else 'the recipe'} {_unreadable(path, error)}"))
        return None
    if real in chain:
        loop = " -> ".join(os.path.basename(p) for p in (*chain[chain.index(real) :], real))
        faults.append(Fault(where, keys, f"is circular: {loop}"))
        return None
    sources.append(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        what = f"not UTF-8: the byte 0x{data[error.start]:02x}; save the file as UTF-8"
        faults.append(Fault(Mark(name, path.parent, line, column), (), what))
        return None
    before_parse = len(faults)
    tree = parse(text, here, faults)
    if tree is None or tree.value is None:
        if len(faults) == before_parse:
            faults.append(Fault(here, (), "is empty; a recipe is a mapping with at least `title:` and `data:`"))
        return None
    if not isinstance(tree.value, dict):
        faults.append(Fault(tree.mark, (), f"must be a mapping (`key: value` lines), not {describe(tree.value)}"))
        return None
    base = tree.value.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base.value, str) or not base.value:
        faults.append(Fault(base.mark, ("base",), f"must be the path of a recipe, not {describe(base.value)}"))
        return None
    below = os.path.normpath(os.path.join(os.path.dirname(name), os.path.expanduser(base.value)))
    under = read(below, base.mark, (*chain, real), sources, faults)
    return merge(under, tree) if under is not None else None


def _unreadable(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "is a folder"
    if isinstance(error, FileNotFoundError):
        files = {p.stem: p.name for p in path.parent.glob("*.y*ml")}
        close = get_close_matches(path.stem, files, n=1)
        return "does not exist" + (f"; did you mean `{files[close[0]]}`?" if close else "")
    return f"cannot be read ({error.strerror if isinstance(error, OSError) and error.strerror else error})"


def merge(below: Node, above: Node) -> Node:
    """Deep merge: mappings key by key, all else (lists too) replaced; naming another component replaces it whole."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    was, now = below.value.get("use"), above.value.get("use")
    if was is not None and now is not None and was.value != now.value:
        return above
    value = dict(below.value)
    for key, node in above.value.items():
        value[key] = merge(value[key], node) if key in value else node
    return Node(value, above.mark, above.key)


def override(tree: Node, overrides: Sequence[str], faults: list[Fault], marks: Sequence[Mark] = ()) -> Node:
    """Apply `key.path=value`, in order. Values are YAML; list items go by index, or by their `name` (or `use`).

    `marks` say where overrides stand that a file holds; those of the command line go by their number.
    """
    for number, text in enumerate(overrides, 1):
        mark = marks[number - 1] if marks else Mark(f"override {number}", Path.cwd())
        name, equals, written = text.partition("=")
        keys = tuple(name.strip().split("."))
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            faults.append(Fault(mark, (), f"`{text[:60]}` is not of the form key.path=value"))
            continue
        before = len(faults)
        value = parse(written, mark, faults, fixed=True)
        if len(faults) > before:
            faults[before:] = [Fault(mark, keys, f.what) for f in faults[before:]]
            continue
        value = value or Node(None, mark)
        value.key = mark
        tree = _assign(tree, (), keys, value, faults)
    return tree


def _assign(node: Node, done: tuple[str | int, ...], keys: tuple[str, ...], value: Node, faults: list[Fault]) -> Node:
    if not keys:
        return merge(node, value)
    head, rest = keys[0], keys[1:]
    if isinstance(node.value, list):
        index = _index(node.value, head)
        if index is None:
            what = f"no item `{head}`; the list has {len(node.value)} (counted from 0)"
            faults.append(Fault(value.mark, done, what))
            return node
        items = list(node.value)
        items[index] = _assign(items[index], (*done, index), rest, value, faults)
        return Node(items, node.mark, node.key)
    if not isinstance(node.value, dict):
        node = Node({}, value.mark, value.mark)
    inside = _assign(node.child(head) or Node({}, value.mark, value.mark), (*done, head), rest, value, faults)
    return merge(node, Node({head: inside}, node.mark, node.key))


def _index(items: list[Node], key: str) -> int | None:
    if key.isascii() and key.isdigit():
        return int(key) if int(key) < len(items) else None
    for label in ("name", "use"):
        found = [i for i, item in enumerate(items) if (child := item.child(label)) and child.value == key]
        if len(found) == 1:
            return found[0]
    return None
