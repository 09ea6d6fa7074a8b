"""Encodings of prompts on the disk: made once, found again by later runs and by other processes.

    <folder>/about.json      what an entry holds: names, types and shapes of its tensors
             <writer>.keys   40 bytes an entry: the prompt's SHA-256, and a checksum of prompt and entry
             <writer>.data   the entries, one after the other, all of one size

A process that makes encodings appends to two files of its own, so there are two a process and none is ever locked; the
key follows its entry, so nobody sees half of one. What a checksum does not confirm is told in the log and made anew.
The default CLIP tower in float32 takes 319,488 bytes a prompt: 100,000 prompts are 32 GB, half of that in float16.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from softdimo.errors import WriteError
from softdimo.files import write_json
from softdimo.math.digest import tensor_bytes

log = logging.getLogger(__name__)
ABOUT = "about.json"
_KEY, _CHECK = 32, 8
Row = dict[str, Tensor]
"""One prompt's tensors, without the batch, on the CPU."""


@dataclass(frozen=True)
class Layout:
    """What an entry holds, in this order."""

    tensors: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]

    @classmethod
    def of(cls, row: Row) -> Layout:
        """That of a prompt's tensors."""
        return cls(tuple((name, t.dtype, tuple(t.shape)) for name, t in sorted(row.items())))

    @classmethod
    def read(cls, path: Path) -> Layout | None:
        """From `about.json`; None where there is none, or none that can be read, which is told."""
        try:
            said = json.loads(path.read_text(encoding="utf-8"))["tensors"]
            return cls(tuple((n, getattr(torch, t["dtype"]), tuple(map(int, t["shape"]))) for n, t in said.items()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is damaged (%s) and will be written anew", path, error)
            return None

    @property
    def size(self) -> int:
        """Bytes of an entry."""
        return sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in self.tensors)

    def plain(self) -> dict[str, dict[str, object]]:
        """For `about.json`."""
        return {n: {"dtype": str(d).removeprefix("torch."), "shape": list(s)} for n, d, s in self.tensors}

    def pack(self, row: Row) -> bytes:
        """An entry."""
        return b"".join(tensor_bytes(row[name]) for name, _, _ in self.tensors)

    def unpack(self, entry: bytes) -> Row:
        """The tensors of an entry."""
        row, at = {}, 0
        for name, dtype, shape in self.tensors:
            end = at + math.prod(shape) * dtype.itemsize
            piece = bytearray(entry[at:end])  # torch makes nothing of nothing
            row[name], at = (
                (torch.frombuffer(piece, dtype=dtype) if piece else torch.empty(0, dtype=dtype)).view(shape),
                end,
            )
        return row


class Store:
    """The entries of one encoder in `folder`, of `limit` bytes at most: beyond that, nothing is added.

    Nothing that goes wrong here stops a run: it is told in the log, and encodings are made that could have been found.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self.layout: Layout | None = None
        self._writer, self._written = secrets.token_hex(8), 0
        self._places: dict[bytes, list[tuple[str, int, bytes]]] = {}
        self._known: dict[str, int] = {}
        self._bytes, self._adds = 0, True
        self._look()

    def __len__(self) -> int:
        """Prompts that have an entry, as far as is known."""
        return len(self._places)

    def get(self, prompts: Sequence[str]) -> dict[str, Row]:
        """The entries of those prompts that have one."""
        keys = {prompt: _key(prompt) for prompt in prompts}
        if not all(key in self._places for key in keys.values()):
            self._look()  # another process may have added some
        rows = {prompt: self._read(key) for prompt, key in keys.items()}
        return {prompt: row for prompt, row in rows.items() if row is not None}

    def put(self, rows: Mapping[str, Row]) -> None:
        """Add entries, all of one layout."""
        if not rows or not self._adds:
            return
        try:
            layout = self._agree(Layout.of(next(iter(rows.values()))))
            if self._bytes + len(rows) * layout.size > self.limit:
                self._stop(f"{self.limit / 1e9:g} GB are full (hardware.text_cache_gb)")
                return
            with (
                (self.folder / f"{self._writer}.data").open("ab") as data,
                (self.folder / f"{self._writer}.keys").open("ab") as keys,
            ):
                for prompt, row in rows.items():
                    key, entry = _key(prompt), layout.pack(row)
                    data.write(entry)
                    data.flush()
                    keys.write(key + _check(key, entry))
                    keys.flush()
                    self._places.setdefault(key, []).append((self._writer, self._written, _check(key, entry)))
                    self._written, self._bytes = self._written + 1, self._bytes + layout.size
        except (OSError, WriteError) as error:
            self._stop(str(error))

    def _stop(self, why: str) -> None:
        self._adds = False
        log.warning("no more encodings of prompts are kept in %s: %s", self.folder, why)

    def _agree(self, layout: Layout) -> Layout:
        """Write what entries hold. Those of another layout are of another version of the encoder, and are deleted."""
        if self.layout == layout:
            return layout
        if self.layout is not None:
            log.warning("%s holds encodings of another version of the encoder, which are deleted", self.folder)
            for path in (*self.folder.glob("*.keys"), *self.folder.glob("*.data")):
                path.unlink(missing_ok=True)
            self._writer, self._written = secrets.token_hex(8), 0
            self._places, self._known, self._bytes = {}, {}, 0
        self.layout = layout
        write_json(self.folder / ABOUT, {"tensors": layout.plain(), "bytes": layout.size})
        return layout

    def _look(self) -> None:
        """Read the keys that others have added since."""
        self.layout = self.layout or Layout.read(self.folder / ABOUT)
        try:
            for path in sorted(self.folder.glob("*.keys")):
                writer, first = path.stem, self._known.get(path.stem, 0)
                if writer == self._writer:
                    continue
                with path.open("rb") as file:
                    file.seek(first * (_KEY + _CHECK))
                    found = file.read()
                count = len(found) // (_KEY + _CHECK)
                for i in range(count):
                    line = found[i * (_KEY + _CHECK) : (i + 1) * (_KEY + _CHECK)]
                    self._places.setdefault(line[:_KEY], []).append((writer, first + i, line[_KEY:]))
                self._known[writer] = first + count
            self._bytes = sum(path.stat().st_size for path in self.folder.glob("*.data"))
        except OSError as error:
            log.warning("%s cannot be read (%s); encodings in it are made anew", self.folder, error)

    def _read(self, key: bytes) -> Row | None:
        """An entry that its checksum confirms; None where there is none."""
        layout, places = self.layout, self._places.get(key, [])
        if layout is None:
            return None
        for writer, number, check in reversed(places):
            path = self.folder / f"{writer}.data"
            try:
                with path.open("rb") as file:
                    file.seek(number * layout.size)
                    entry = file.read(layout.size)
            except OSError:
                entry = b""
            if len(entry) == layout.size and _check(key, entry) == check:
                return layout.unpack(entry)
        if self._places.pop(key, None):
            log.warning("%s: entry %d is damaged; its prompt is encoded anew", path, number)
        return None


def _key(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()


def _check(key: bytes, entry: bytes) -> bytes:
    return hashlib.blake2b(key + entry, digest_size=_CHECK).digest()
