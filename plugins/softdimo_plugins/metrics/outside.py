"""Metrics whose numbers are a program's: the images of a row go into files, and what was scored is not scored again."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Cond, Metric
from softdimo.math.digest import tensor_bytes
from softdimo.shapes import Image, Labels
from softdimo.spec import Argv, LocalPath, Positive, Spec
from softdimo_plugins.imaging import Rule, to_bytes, to_range
from softdimo_plugins.metrics.kept import Store, encoded
from softdimo_plugins.metrics.program import Program

STANDIN = (sys.executable, "-m", "softdimo_plugins.metrics.standin")


class OutsideSpec(Spec):
    """Settings of a metric whose numbers come from a program of another environment, without a shell.

    It is called as `<command> REQUEST ANSWER`, see `softdimo_plugins.metrics.program`. A recipe that names a command
    runs it: read a stranger's recipe first.
    """

    command: Argv
    """The program and its arguments, a list. A path relative to the recipe begins with `./` or `../`."""
    timeout: Positive = 7200.0
    """Seconds that one call may take."""
    keep: LocalPath | None = None
    """A folder that gets one of images, and of what the program said, for each row (and seed); none when null."""
    uint8: Rule = "truncate"
    """How an image in [0, 1] becomes the bytes of its file, see `inception`; `truncate` is what Di[M]O's code does."""
    name: str = ""
    """Prefix of the numbers' names (`<name>/geneval`)."""

    def smoke(self) -> Self:
        """A stand-in that calls bright images good, and leaves no files."""
        return self.model_copy(update={"command": STANDIN, "keep": None})

    def program(self) -> Program:
        """The command. PluginError where it cannot be found."""
        found = Program(self.command, self.timeout)
        found.present()
        return found


class Item(NamedTuple):
    """One image of a row."""

    digest: str
    """SHA-256 of its pixels."""
    prompt: str | None
    label: int
    seed: int | None
    """What drew it, where it was drawn."""

    @property
    def file(self) -> str:
        """Its name where it is kept."""
        return f"{self.digest}.png"


class Pointers(NamedTuple):
    """What is kept of a batch: where its images are, and their conditions."""

    digests: UInt8[Tensor, "B 32"]
    labels: Labels
    text: UInt8[Tensor, "T"]
    """Prompts, one after the other, in UTF-8."""
    lengths: Int[Tensor, "B"]
    """Bytes of each; -1 without one."""


class Answered(NamedTuple):
    """What came of a call."""

    answer: dict[str, Any]
    written: dict[str, bytes]
    """The files that it wrote besides."""


class OutsideMetric(Metric):
    """Collects the images of a row; a subclass asks the program about them."""

    formula: ClassVar[str]
    """Name and version of the request and of what is made of the answer."""
    seen_type = Pointers
    compares_with = "nothing"

    def __init__(self, spec: OutsideSpec) -> None:
        self.spec, self.program = spec, spec.program()
        self._row, self._seeds, self.store = "images", tuple[int, ...](), Store()
        self.reset()

    def begin(self, row: str, seeds: tuple[int, ...], folder: Path) -> None:
        """Images of a row come next."""
        self._row, self._seeds, self.store = row, seeds, Store(folder / "images")

    def reset(self) -> None:
        """Forget the images."""
        self._seen: list[tuple[str, str | None, int]] = []

    def look(self, img: Image, cond: Cond) -> Pointers:
        """Put images [B C H W] into files named by their pixels."""
        pixels = to_bytes(to_range(img.detach().float(), self.spec.uint8)).cpu()
        digests = []
        for one in pixels:
            sha = hashlib.sha256(f"{tuple(one.shape)};".encode() + tensor_bytes(one))
            self.store.put(f"{sha.hexdigest()}.png", encoded(one, "PNG"))
            digests.append(list(sha.digest()))
        prompts: Iterable[str | None] = cond.prompts or [None] * len(pixels)
        data = [None if p is None else p.encode() for p in prompts]
        return Pointers(
            torch.tensor(digests, dtype=torch.uint8).view(-1, 32),
            cond.labels.cpu(),
            torch.tensor(list(b"".join(d or b"" for d in data)), dtype=torch.uint8),
            torch.tensor([-1 if d is None else len(d) for d in data], dtype=torch.int64),
        )

    def add(self, seen: Pointers) -> None:
        """Add the images of a batch."""
        text, at = bytes(seen.text.tolist()), 0
        lines = zip(seen.digests.tolist(), seen.labels.tolist(), seen.lengths.tolist(), strict=True)
        for digest, label, length in lines:
            prompt = None if length < 0 else text[at : at + length].decode()
            at += max(length, 0)
            self._seen.append((bytes(digest).hex(), prompt, label))

    def update(self, img: Image, cond: Cond) -> None:
        """Add generated images [B C H W]."""
        self.add(self.look(img, cond))

    def items(self) -> list[Item]:
        """The images since `reset`; each seed drew an equal share, in turn. DataError where there are none."""
        if not self._seen:
            raise DataError(f"{self.formula.split('/')[0]}: no images were given")
        n, seeds = len(self._seen), self._seeds
        return [Item(*each, seeds[i * len(seeds) // n] if seeds else None) for i, each in enumerate(self._seen)]

    def result(self) -> dict[str, float]:
        """The program's numbers of the images since `reset`."""
        prefix = f"{self.spec.name}/" if self.spec.name else ""
        return {prefix + name: value for name, value in self._numbers(self.items()).items()}

    @abstractmethod
    def _numbers(self, items: Sequence[Item]) -> dict[str, float]: ...

    def fingerprint(self) -> dict[str, str | int | float]:
        """The formula, and what the program says that its numbers depend on."""
        told = {f"program {name}": value for name, value in self.program.provenance().items()}
        return {"formula": self.formula, "uint8": self.spec.uint8, **self._settings(), **told}

    def _settings(self) -> dict[str, str | int | float]:
        return {}

    def send(
        self,
        images: Sequence[Mapping[str, Any]],
        files: Mapping[str, str | bytes],
        layout: str = "images",
        **writes: str,
    ) -> Answered:
        """Lay out `files` and ask the program about `images`; it may write more: `writes` are paths from the folder."""
        self.store.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.store.folder, prefix=".sent-") as name:
            folder = Path(name) / "images"
            self.store.lay_out(folder, files)
            paths = {key: (folder / path).resolve() for key, path in writes.items()}
            request = {"layout": layout, "folder": str(folder), "images": images}
            answer = self.program.ask(request | {key: str(path) for key, path in paths.items()})
            return Answered(answer, {key: path.read_bytes() for key, path in paths.items() if path.is_file()})

    def kept(self, files: Mapping[str, str | bytes]) -> None:
        """Leave the row's files where the settings want them."""
        if self.spec.keep is not None:
            self.store.lay_out(Path(self.spec.keep).expanduser() / self._row, files)


class Scored:
    """What a program said of single images, in a file beside them: for all who measure the row, now or later."""

    def __init__(self, store: Store, program: Program) -> None:
        told = json.dumps([program.argv, program.provenance()], sort_keys=True)
        self.store, self.path = store, store.folder / f"scored-{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
        self._known: dict[str, Any] = {}
        if self.path.is_file():
            try:
                self._known = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(f"{self.path} is damaged ({error}); delete it") from error

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def add(self, found: Mapping[str, Any]) -> None:
        """Keep more."""
        self._known |= found
        self.path.unlink(missing_ok=True)
        self.store.put(self.path.name, json.dumps(self._known).encode())
