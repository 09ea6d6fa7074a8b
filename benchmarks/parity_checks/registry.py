"""Which check belongs to which file. The family is the first part of the name; `_trace`, `_dimo`, `_sampler` follow it.

To add a family: a module here with `CHECKS`, and one line in `TABLES`.
"""

from __future__ import annotations

from pathlib import Path

from . import (
    clip_text,
    halton,
    maskbit,
    maskgen,
    maskgit,
    meissonic,
    meissonic_dimo,
    schedules,
    tatitok,
    vqgan,
)
from .case import TINY, Case, Check

FAMILIES = (
    "maskgit", "halton", "vqgan", "maskbit", "maskbit_tokenizer", "meissonic", "meissonic_vqvae",
    "maskgen", "maskgen_text", "tatitok", "schedules",
)  # fmt: skip
"""Every family of the format; the longest one that begins a file's name is its family."""
PARTS = ("trace", "dimo", "sampler")
"""What a recording can be of, beside the `model` itself."""
TABLES: list[dict[tuple[str, str], Check]] = [
    maskgit.CHECKS,
    halton.CHECKS,
    vqgan.CHECKS,
    schedules.CHECKS,
    maskbit.CHECKS,
    clip_text.CHECKS,
    maskgen.CHECKS,
    tatitok.CHECKS,
    meissonic.CHECKS,
    meissonic_dimo.CHECKS,
]


def kind(path: Path) -> tuple[str, str]:
    """(family, part) of a JSON file's name; the words that are neither name a variant."""
    words = path.stem.removesuffix(TINY).split("_")
    for n in range(len(words), 0, -1):
        if "_".join(words[:n]) in FAMILIES:
            return "_".join(words[:n]), next((w for w in words[n:] if w in PARTS), "model")
    return words[0], "model"


def find(path: Path) -> Check | None:
    """The check of a file; None if its family has none."""
    return next((table[kind(path)] for table in TABLES if kind(path) in table), None)


def run(path: Path, check: Check) -> Case:
    """Run one check. Raises ValueError for settings that it does not know and for tensors that it did not read."""
    case = Case.load(path)
    check(case)
    if case.unread:
        raise ValueError(f"recorded, but nothing was compared with it: {', '.join(sorted(case.unread))}")
    if not case.gaps:
        raise ValueError("nothing was compared")
    return case
