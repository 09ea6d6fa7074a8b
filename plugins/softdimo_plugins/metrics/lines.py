"""JSON Lines files that say more of prompts, as GenEval's evaluation_metadata.jsonl."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from softdimo.errors import DataError


class Line(NamedTuple):
    """One prompt."""

    place: int
    """In the file, from 0."""
    text: str
    """The line, as it is written."""
    value: dict[str, Any]


def read_lines(path: str | None) -> dict[str, Line]:
    """Prompt, without space around it -> its line; nothing without a file.

    DataError where a line is no mapping with a `prompt` of its own.
    """
    found: dict[str, Line] = {}
    if path is None:
        return found
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the metadata {path}: {error}") from error
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
            prompt = value["prompt"].strip()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}:{number}: must be a mapping with a text `prompt` ({error!r})") from error
        if prompt in found:
            raise DataError(f"{path}:{number}: the prompt {prompt!r} has a line already")
        found[prompt] = Line(len(found), text.strip(), value)
    return found


def digest(lines: Iterable[Line]) -> str:
    """SHA-256 of their texts, in order."""
    return hashlib.sha256("\n".join(line.text for line in lines).encode()).hexdigest()
