"""Conditions that somebody asks for: prompts, or class labels by name or number."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from softdimo.errors import DataError
from softdimo.generator import label_of
from softdimo.kinds import NULL_LABEL, Cond


@dataclass(frozen=True)
class Wanted:
    """One condition of one search."""

    text: str
    """The prompt, or the name of the class."""
    label: int = NULL_LABEL
    """The class; -1 for a prompt."""
    turn: int = 0
    """How often the same condition came before it: the second search for one starts from other noise."""

    @property
    def key(self) -> str:
        """Name of its folder, the same in whatever company: words of it, and a hash that decides its random numbers."""
        words = re.sub(r"[^a-z0-9]+", "_", self.text.lower()).strip("_")[:40].strip("_")
        kind = "prompt" if self.label == NULL_LABEL else f"class {self.label}"
        digest = hashlib.sha256(f"{kind} {self.turn} {self.text}".encode()).hexdigest()[:10]
        return f"{words or 'condition'}-{digest}"


def of_labels(labels: Sequence[str], classes: Sequence[str]) -> list[Wanted]:
    """Classes by name, or by number where none has that name. DataError for one that is unknown."""
    numbers = [label_of(x if x in classes or not x.isdecimal() else int(x), classes) for x in labels]
    return _counted([Wanted(classes[i], i) for i in numbers])


def of_prompts(prompts: Sequence[str]) -> list[Wanted]:
    """Prompts, without the spaces around them. DataError for one that says nothing."""
    said = [" ".join(prompt.split()) for prompt in prompts]
    if not all(said):
        raise DataError("a prompt is empty; say what is wanted")
    return _counted([Wanted(prompt) for prompt in said])


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines do not count. DataError where there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise DataError(f"cannot read the prompts of {path}: {reason}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise DataError(f"{path} holds no prompt; write one a line")
    return found


def cond(wanted: Sequence[Wanted]) -> Cond:
    """The conditions as a batch, not encoded yet."""
    prompts = tuple(each.text for each in wanted) if wanted[0].label == NULL_LABEL else ()
    return Cond(torch.tensor([each.label for each in wanted], dtype=torch.int64), prompts)


def _counted(wanted: Sequence[Wanted]) -> list[Wanted]:
    seen: Counter[Wanted] = Counter()
    out = []
    for each in wanted:
        out.append(Wanted(each.text, each.label, seen[each]))
        seen[each] += 1
    return out
