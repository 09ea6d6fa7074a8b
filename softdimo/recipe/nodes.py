"""YAML with positions: every value knows the file, line and column it was written at.

The scalars are those of YAML 1.2's core schema: `1e-5` is a number, `yes`, `no`, `1:30` and dates are text. Anchors,
aliases and `<<` work; tags beyond the core ones, duplicate keys and keys that are not scalars are faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from softdimo.spec import Written

MAX_NODES = 100_000
"""Values in one file after aliases are expanded; more is a mistake (or an attack by nested aliases)."""
MAX_DIGITS = 100
"""Characters in a number."""


@dataclass(frozen=True)
class Mark:
    """Where something was written: a file (as the user named it) with 1-based line and column, or an override."""

    source: str
    folder: Path
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else f"{self.source}:"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, at which key path, and what."""

    mark: Mark
    path: tuple[str | int, ...]
    what: str

    def __str__(self) -> str:
        where = f"{self.mark} {dotted(self.path)}:" if self.path else str(self.mark)
        line = re.sub(r"\s*\n\s*", " ", f"{where} {self.what}")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def dotted(path: tuple[str | int, ...]) -> str:
    """A key path as the command line writes it: `train.terms.1.weight`."""
    return ".".join(str(part) for part in path)


@dataclass
class Node:
    """A value and where it was written. Mappings keep the position of each key."""

    value: Any
    """dict[str, Node], list[Node], or a scalar."""
    mark: Mark
    key: Mark | None = None
    """Where its key was written, for values of a mapping."""

    @property
    def anchor(self) -> Mark:
        """What to point at for a fault of the value as a whole: its key, for a collection."""
        return self.key if self.key and isinstance(self.value, dict | list) else self.mark

    def plain(self) -> Any:
        """The value without positions; text keeps the folder of its file."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        if isinstance(self.value, str):
            text = Written(self.value)
            text.folder = self.mark.folder
            return text
        return self.value

    def child(self, part: str | int) -> Node | None:
        """The value at one key or index, if there is one."""
        found: Node | None
        if isinstance(self.value, dict):
            found = self.value.get(str(part))
            return found
        if isinstance(self.value, list) and isinstance(part, int) and 0 <= part < len(self.value):
            found = self.value[part]
            return found
        return None


class Scalars:
    """Implicit scalar types, shared by reading and writing."""

    rules = (
        ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
        (
            "tag:yaml.org,2002:float",
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
            list("-+.0123456789"),
        ),
        ("tag:yaml.org,2002:merge", r"<<", ["<"]),
    )

    @classmethod
    def install(cls, target: Any) -> None:
        """Replace the implicit types of a PyYAML loader or dumper."""
        target.yaml_implicit_resolvers = {}
        for tag, pattern, first in cls.rules:
            target.add_implicit_resolver(tag, re.compile(rf"^(?:{pattern})$"), first)


class _Loader(yaml.SafeLoader):
    """Composes nodes only; nothing is ever constructed by PyYAML."""


Scalars.install(_Loader)
_TEXT, _NULL, _BOOL, _INT, _FLOAT, _MAP, _SEQ, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "null", "bool", "int", "float", "map", "seq", "merge")
)


def parse(text: str, mark: Mark, faults: list[Fault], fixed: bool = False) -> Node | None:
    """Read one YAML document. Faults are appended; None means nothing could be read.

    `fixed` gives everything the one mark: the text is an override, not a file.
    """
    try:
        root = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        where = mark if fixed or at is None else Mark(mark.source, mark.folder, at.line + 1, at.column + 1)
        faults.append(Fault(where, (), f"not valid YAML: {_plain_words(error)}"))
        return None
    except yaml.reader.ReaderError as error:
        before = text[: int(error.position)]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        where = mark if fixed else Mark(mark.source, mark.folder, line, column)
        faults.append(Fault(where, (), f"not valid YAML: the character U+{ord(text[int(error.position)]):04X}"))
        return None
    except RecursionError:
        faults.append(Fault(mark, (), "nested too deeply"))
        return None
    if root is None:
        return None
    return _Builder(mark, faults, fixed).build(root, ())


def _plain_words(error: yaml.MarkedYAMLError) -> str:
    problem = " ".join(filter(None, [error.context, error.problem]))
    if "'\\t'" in problem:
        return "a tab; indent with spaces"
    return problem


class _Builder:
    """Turns PyYAML's node graph into a tree of `Node`."""

    def __init__(self, mark: Mark, faults: list[Fault], fixed: bool) -> None:
        self.root, self.faults, self.fixed, self.count = mark, faults, fixed, 0
        self.open: list[yaml.Node] = []

    def mark(self, node: yaml.Node) -> Mark:
        if self.fixed:
            return self.root
        return Mark(self.root.source, self.root.folder, node.start_mark.line + 1, node.start_mark.column + 1)

    def fault(self, node: yaml.Node, path: tuple[str | int, ...], what: str) -> None:
        self.faults.append(Fault(self.mark(node), path, what))

    def build(self, node: yaml.Node, path: tuple[str | int, ...], key: Mark | None = None) -> Node:
        mark = self.mark(node)
        self.count += 1
        if self.count > MAX_NODES:
            if self.count == MAX_NODES + 1:
                self.fault(node, path, f"more than {MAX_NODES} values; are aliases nested?")
            return Node(None, mark, key)
        if node in self.open:
            self.fault(node, path, "an alias that contains itself")
            return Node(None, mark, key)
        if isinstance(node, yaml.ScalarNode):
            return Node(self.scalar(node, path), mark, key)
        if node.tag not in (_MAP, _SEQ):
            self.fault(node, path, f"the tag {node.tag} is not allowed")
        self.open.append(node)
        value: dict[str, Node] | list[Node]
        if isinstance(node, yaml.MappingNode):
            value = self.mapping(node, path)
        else:
            value = [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        self.open.pop()
        return Node(value, mark, key)

    def mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.fault(key, path, "a key must be text")
                continue
            if key.tag == _MERGE:
                for inherited, found in self.merge(value, path):
                    merged.setdefault(inherited, found)
                continue
            name = key.value.encode("utf-8", "replace").decode()
            if name in own:
                first = own[name].key
                at = f" (first at line {first.line})" if first and not self.fixed else ""
                self.fault(key, (*path, name), f"duplicate key{at}")
            else:
                own[name] = self.build(value, (*path, name), self.mark(key))
        return {**{k: v for k, v in merged.items() if k not in own}, **own}

    def merge(self, value: yaml.Node, path: tuple[str | int, ...]) -> Iterator[tuple[str, Node]]:
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            node = self.build(source, path)
            if isinstance(node.value, dict):
                yield from node.value.items()
            else:
                self.fault(source, path, "`<<` takes a mapping or a list of mappings")

    def scalar(self, node: yaml.ScalarNode, path: tuple[str | int, ...]) -> Any:
        text = node.value
        if node.tag in (_INT, _FLOAT) and len(text) > MAX_DIGITS:
            self.fault(node, path, f"a number of more than {MAX_DIGITS} characters")
            return None
        try:
            if node.tag == _TEXT:
                text.encode()
                return text
            if node.tag == _NULL:
                return None
            if node.tag == _BOOL:
                return {"true": True, "false": False}[text.lower()]
            if node.tag == _INT:
                return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
            if node.tag == _FLOAT:
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except UnicodeEncodeError:
            self.fault(node, path, "text with half of a surrogate pair")
            return ""
        except (ValueError, KeyError):
            self.fault(node, path, f"`{text[:40]}` is not a {node.tag.rpartition(':')[2]}")
            return None
        self.fault(node, path, f"the tag {node.tag} is not allowed")
        return None
