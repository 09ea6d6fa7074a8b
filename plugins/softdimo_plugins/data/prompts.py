"""Prompts alone, from files: all the data that Di[M]O needs of a text-conditioned teacher."""

from __future__ import annotations

import hashlib
import logging
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import NULL_LABEL, Batch, Cond, Context, Data, ImageShape
from softdimo.spec import LocalPath, Spec
from softdimo_plugins.data.texts import Texts, find

log = logging.getLogger(__name__)


class Prompts(Spec):
    """Prompts without images: a file, or a folder of files of one kind, of text, JSON, CSV or Parquet.

    `.txt`: a prompt on each line. `.jsonl`: a record (or a text) on each line, as GenEval's evaluation_metadata.jsonl.
    `.json`: a list of either, as the benchmark prompts of HPSv2. `.csv`: a column that its first line names, as
    T2IBenchmark's captions of COCO. `.parquet`: a column, as LAION's. Lines are found once and read when they are
    needed; of the last three kinds the prompts are kept in memory, as bytes. Blank prompts are left out.
    """

    path: LocalPath
    """The file or folder, relative to the recipe that names it; of a folder all such files, in the order of names."""
    field: str | None = None
    """Field (or column) of a record's prompt; the first that there is of prompt, caption, text, TEXT when null."""
    group: str | None = None
    """What the labels of prompts to sample for say: `file`, the name of their file (HPSv2's four styles), or a field or
    column (GenEval's `tag`). Its values become the classes, in the order in which they come. -1 for all when null."""
    held_out: Annotated[float, Field(ge=0, lt=1)] | LocalPath = 0.1
    """Fraction kept out of training, to sample for: chosen by a hash of the prompt, so that equal ones stay together.
    Or a file or folder of other prompts to sample for, a benchmark's. 0: all are trained on, and all sampled for."""
    seed: int = 0
    """Seed of that hash."""
    shortest: Annotated[int, Field(ge=1)] = 1
    """Characters below which a prompt of `path` is left out."""
    longest: Annotated[int, Field(ge=1)] | None = None
    """Characters above which one is left out."""
    size: Annotated[int, Field(ge=1)] = 256
    """Height and width of the images that the tokenizer decodes."""
    channels: Literal[1, 3] = 3
    """3 for color, 1 for gray."""
    random: Annotated[int, Field(ge=0)] = 0
    """So many made-up prompts instead of files, to try the code: `--smoke` says 64 where the files are not there."""

    def smoke(self) -> Self:
        """Images of 256 px at most, and made-up prompts where files are missing."""
        small = self.model_copy(update={"size": min(256, self.size)})
        return small if all(path.exists() for path in self._paths()) else small.model_copy(update={"random": 64})

    def content(self) -> str:
        """SHA-256 of the files' bytes, in their order; they are read again only when a size or a time has changed."""
        if self.random:
            return ""
        try:
            return " ".join(_digest(tuple(_stat(file) for file in find(path))) for path in self._paths())
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error

    def build(self, context: Context) -> PromptData:
        """Find every prompt. DataError names the file and the line at fault."""
        train, held = self._texts()
        rows = {"train": np.arange(len(train)), "held_out": np.arange(len(held))}
        if train is held and not isinstance(self.held_out, str) and self.held_out:
            rows = self._split(train, self.held_out)
        paths_out = {"use", "path"} | ({"held_out"} if isinstance(self.held_out, str) else set())
        return PromptData(
            {"train": PromptSource(train, rows["train"]), "held_out": PromptSource(held, rows["held_out"])},
            ImageShape(self.channels, self.size, self.size),
            hashlib.sha256(f"{self.content()} {self.model_dump_json(exclude=paths_out)}".encode()).hexdigest(),
        )

    def _texts(self) -> tuple[Texts | MadeUp, Texts | MadeUp]:
        """Those to train on, and those to sample for, which may be the same."""
        if self.random:
            log.warning("made-up prompts stand in for those of %s: this is a trial of the code alone", self.path)
            return (made_up := MadeUp(self.random)), made_up
        paths = self._paths()
        group = self.group if len(paths) == 1 else None
        train = held = Texts(find(paths[0]), self.field, group, self._wanted)
        if len(paths) > 1:
            held = Texts(find(paths[1]), None, self.group, lambda text: True)
        for path, texts in zip(paths, (train, held), strict=False):
            if not len(texts):
                raise DataError(f"{path} has no prompts of the lengths asked for; see data.shortest and data.longest")
        return train, held

    def _paths(self) -> list[Path]:
        others = [self.held_out] if isinstance(self.held_out, str) else []
        return [Path(path).expanduser() for path in (self.path, *others)]

    def _wanted(self, text: str) -> bool:
        return self.shortest <= len(text) and (self.longest is None or len(text) <= self.longest)

    def _split(self, texts: Texts | MadeUp, fraction: float) -> dict[str, NDArray[np.int64]]:
        """The prompts with the least hashes are held out, at least one."""

        def key(text: str) -> int:
            raw = f"{self.seed} {text}".encode("utf-8", "surrogatepass")
            return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")

        keys = np.fromiter((key(texts[i]) for i in range(len(texts))), np.uint64, len(texts))
        out = keys <= np.partition(keys, k := max(1, round(fraction * len(keys))) - 1)[k]
        if out.all():
            raise DataError(
                f"{self.path} has one prompt, or one alone that differs from others; set data.held_out to 0"
            )
        return {"train": np.flatnonzero(~out), "held_out": np.flatnonzero(out)}


def _stat(file: Path) -> tuple[Path, int, int]:
    found = file.stat()
    return file, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=8)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash of the names and bytes of files (with their sizes and times)."""
    sha = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            sha.update(f"{path.name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()


class MadeUp:
    """Prompts of three words, in no group."""

    groups: tuple[str, ...] = ()
    group = np.empty(0, np.int64)

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> str:
        colors, things = ("red", "green", "blue", "old"), ("cube", "boat", "house", "cat", "tree")
        return f"a {colors[i % 4]} {things[i % 5]}" + (f", {i // 20}" if i >= 20 else "")


class PromptSource:
    """Some of the texts, as conditions."""

    def __init__(self, texts: Texts | MadeUp, rows: NDArray[np.int64]) -> None:
        self.texts, self.rows = texts, rows

    def __len__(self) -> int:
        return len(self.rows)

    def cond(self, index: Int[Tensor, "B"]) -> Cond:
        """The prompts at `index`, each in [0, len), with their groups as labels."""
        rows = self.rows[index.numpy()]
        labels = self.texts.group[rows] if self.texts.groups else np.full(len(rows), NULL_LABEL)
        return Cond(torch.from_numpy(labels.astype(np.int64)), tuple(self.texts[i] for i in rows.tolist()))

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """The same, as a batch without images."""
        return Batch(self.cond(index))


class PromptData(Data):
    """Prompts to train on, and others to sample for, which are the conditions."""

    has_images = False

    def __init__(self, sources: dict[str, PromptSource], image: ImageShape, digest: str) -> None:
        self.sources, self.image, self.digest = sources, image, digest
        held = sources["held_out"]
        self.classes = tuple(held.texts.groups)
        labels = held.texts.group[held.rows] if self.classes else np.zeros(len(held), np.int64)
        turn = np.zeros(len(held), np.int64)
        for k in range(len(self.classes)):
            turn[labels == k] = np.arange((labels == k).sum())
        self._order = np.lexsort((labels, turn)) if self.classes else np.arange(len(held))

    def source(self, split: str) -> PromptSource:
        """The split `train` or `held_out`."""
        if split not in self.sources:
            raise DataError(f"no split {split!r}; this data set has train and held_out")
        return self.sources[split]

    def conditions(self, n: int) -> Cond:
        """The prompts to sample for, in the order of the files, groups taking turns; again from the first after all."""
        return self.sources["held_out"].cond(torch.from_numpy(self._order[np.arange(n) % len(self._order)]))

    def fingerprint(self) -> str:
        """Hash of the files' content and of the settings that choose among it."""
        return f"prompts:{self.digest}"
