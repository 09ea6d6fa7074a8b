"""Texts in files: where each one stands, and the text itself when it is asked for."""

from __future__ import annotations

import csv
import json
import logging
import mmap
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softdimo.errors import DataError, PluginError

SUFFIXES = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".parquet")
FIELDS = ("prompt", "caption", "text", "TEXT")
"""Where a record has its text, if nobody says; the first of these that it has."""
FILE = "file"
"""The group of a text is the name of its file."""
log = logging.getLogger(__name__)


@dataclass
class Part:
    """The texts of one file: pieces of its bytes, plain text or records (JSON) with a text inside."""

    held: mmap.mmap | NDArray[np.uint8]
    read: Callable[[bytes], str]
    begin: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("l"))

    def __getitem__(self, i: int) -> str:
        begin = self.begin[i]
        return self.read(bytes(self.held[begin : begin + self.size[i]]))


class Texts:
    """Texts of files in their order; only those that `wanted` takes are kept, blank ones never are.

    Memory: 16 bytes a text, and the texts of `.json`, `.csv` and `.parquet` files. DataError names file and line.
    """

    def __init__(
        self, files: Sequence[Path], field: str | None, group: str | None, wanted: Callable[[str], bool]
    ) -> None:
        self.parts: list[Part] = []
        number: dict[str, int] = {}
        numbers, blank, left = array("l"), 0, 0
        for path in files:
            part, found = _open(path, field, group)
            for begin, size, text, named in found:
                if not text or not wanted(text):
                    blank, left = blank + (not text), left + bool(text)
                    continue
                part.begin.append(begin)
                part.size.append(size)
                if group is not None:
                    numbers.append(number.setdefault(path.stem if group == FILE else named, len(number)))
            self.parts.append(part)
        if blank or left:
            log.info("%d texts are blank and %d of another length; they are left out", blank, left)
        self.groups, self.group = list(number), np.array(numbers, np.int64)
        """Names of groups as they come, and each text's number; empty where there are none."""
        self._first = np.cumsum([0, *(len(part.begin) for part in self.parts)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, i: int) -> str:
        k = int(np.searchsorted(self._first, i, "right")) - 1
        return self.parts[k][i - int(self._first[k])]


def find(path: Path) -> list[Path]:
    """A file, or the files of texts in a folder, in the order of their names; DataError says what is wrong there."""
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path} does not exist; give a file or a folder of texts ({', '.join(SUFFIXES)})")
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path} is no file of texts ({', '.join(SUFFIXES)})")
        return [path]
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != ".")
    kinds = sorted({p.suffix.lower() for p in files})
    if len(kinds) != 1:
        what = f"has {' and '.join(kinds)} files" if kinds else f"has no files of texts ({', '.join(SUFFIXES)})"
        raise DataError(f"{path} {what}; give one file, or a folder with files of one kind")
    return files


Found = Iterator[tuple[int, int, str, str]]
"""Where a text (or its record) begins, its bytes, the text, its group."""


def _open(path: Path, field: str | None, group: str | None) -> tuple[Part, Found]:
    """A file, and an iteration over all that it holds."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _column(path, field, group)
    if suffix in (".json", ".csv"):
        return _list(path, field, group)
    try:
        with path.open("rb") as file:
            held: mmap.mmap | NDArray[np.uint8] = (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else np.empty(0, np.uint8)
            )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if suffix == ".txt":
        if group not in (None, FILE):
            raise DataError(f"{path}: lines of text have no field {group!r}; set data.group to null, or to `file`")
        part = Part(held, lambda raw: raw.decode("utf-8").strip())
        return part, ((begin, len(raw), part.read(raw), "") for begin, raw in _lines(path, held))
    part = Part(held, lambda raw: _text(json.loads(raw), field))
    return part, _records(path, held, field, group)


def _lines(path: Path, held: mmap.mmap | NDArray[np.uint8]) -> Iterator[tuple[int, bytes]]:
    """Lines with where they begin; those that are not UTF-8 are told."""
    if not isinstance(held, mmap.mmap):
        return
    number, begin = 0, 3 if held[:3] == b"\xef\xbb\xbf" else 0
    held.seek(begin)
    while raw := held.readline():
        number += 1
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: {error.reason} at byte {error.start}; write it as UTF-8") from error
        if raw.strip():
            yield begin, raw
        begin += len(raw)


def _records(path: Path, held: mmap.mmap | NDArray[np.uint8], field: str | None, group: str | None) -> Found:
    for number, (begin, raw) in enumerate(_lines(path, held), 1):
        try:
            record = json.loads(raw)
            yield begin, len(raw), _text(record, field), _group(record, group)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: record {number}: {error}") from error


def _list(path: Path, field: str | None, group: str | None) -> tuple[Part, Found]:
    kind = path.suffix.lower()
    try:
        whole = path.read_bytes().decode("utf-8-sig")
        records = json.loads(whole) if kind == ".json" else list(csv.DictReader(StringIO(whole, ""), strict=True))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{path} is not {kind[1:].upper()} that can be read: {error}") from error
    if not isinstance(records, list):
        raise DataError(f"{path} holds no list of texts or records, but a {type(records).__name__}")
    texts, groups = [], []
    for number, record in enumerate(records, 1):
        try:
            texts.append(_text(record, field).encode("utf-8", "surrogatepass"))
            groups.append(_group(record, group))
        except ValueError as error:
            raise DataError(f"{path}: record {number}: {error}") from error
    return _packed(np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)]), groups)


def _packed(held: NDArray[np.uint8], ends: NDArray[np.int64], groups: Sequence[str]) -> tuple[Part, Found]:
    """Texts one after the other, text i from `ends[i]` to `ends[i + 1]`."""
    part = Part(held, lambda raw: raw.decode("utf-8", "surrogatepass").strip())

    def found() -> Found:
        for i, (begin, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
            yield begin, end - begin, part.read(bytes(held[begin:end])), groups[i] if groups else ""

    return part, found()


def _column(path: Path, field: str | None, group: str | None) -> tuple[Part, Found]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise PluginError(f"{path} needs pyarrow ({error}): run `pip install 'softdimo[parquet]'`") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            name = field or next((f for f in FIELDS if f in names), FIELDS[0])
            wanted = [name] if group in (None, FILE) else [name, group]
            if missing := [n for n in wanted if n not in names]:
                raise DataError(f"{path} has no column {missing[0]!r}; it has {', '.join(names)}")
            table = file.read(columns=wanted)
        texts = table[name].cast(arrow.large_string()).combine_chunks()
        values = [] if group in (None, FILE) else [_scalar(v) for v in table[group].to_pylist()]
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if isinstance(texts, arrow.ChunkedArray):  # older versions of pyarrow give one with one chunk
        texts = arrow.concat_arrays(texts.chunks) if texts.num_chunks else arrow.array([], arrow.large_string())
    texts = texts.fill_null("")
    _, offsets, held = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1] if len(texts) else np.zeros(1)
    return _packed(np.frombuffer(held or b"", np.uint8), ends.astype(np.int64), values)


def _text(record: Any, field: str | None) -> str:
    """The text of a record; empty where it is null. ValueError says what the record has instead."""
    if isinstance(record, str) and field is None:
        return record.strip()
    if not isinstance(record, dict):
        raise ValueError(f"is a {type(record).__name__}, not a record" + (" or a text" if field is None else ""))
    name = field or next((f for f in FIELDS if f in record), FIELDS[0])
    if name not in record:
        raise ValueError(f"has no {name!r}, only {', '.join(map(str, list(record)[:8])) or 'nothing'}; set data.field")
    text = record[name]
    if not isinstance(text, str | None):
        raise ValueError(f"{name!r} is a {type(text).__name__}, not a text; set data.field")
    return (text or "").strip()


def _group(record: Any, group: str | None) -> str:
    if group in (None, FILE):
        return ""
    if not isinstance(record, dict) or group not in record:
        raise ValueError(f"has no {group!r}; set data.group to a field that every record has")
    return _scalar(record[group])


def _scalar(value: Any) -> str:
    if not isinstance(value, str | int):
        raise ValueError(f"a group is a text or a number, not a {type(value).__name__}")
    return str(value)
