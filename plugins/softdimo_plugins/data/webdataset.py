"""Tar files in the layout of webdataset: files of one sample side by side, under one name with different suffixes.

The library of that name only streams. A split that holds images of every class out, and a run that goes on where it
stopped, need any sample at any time; so the tars' headers are read once, with Python's own `tarfile`.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from softdimo.errors import DataError
from softdimo.kinds import Context, ImageShape
from softdimo.spec import LocalPath, Spec
from softdimo_plugins.data.classes import Classes, class_names
from softdimo_plugins.data.pictures import Crop, StreamData, decode, threads

SUFFIXES = ("jpg", "jpeg", "png", "webp")


class WebDataset(Spec):
    """Uncompressed tar files with an image (jpg, jpeg, png or webp) and a class number (cls) for each sample.

    Images are decoded each time they are asked for. Nothing but these files is read, and nothing is unpickled.
    """

    path: LocalPath
    """A folder of `.tar` files, taken in the order of their names; relative to the recipe that names it."""
    classes: Classes | None = None
    """How many classes there are, their names, or `imagenet`; as many as the largest number says when null."""
    size: Annotated[int, Field(ge=4)] = 256
    """Height and width of the images."""
    channels: Literal[1, 3] = 3
    """3 for color, 1 for gray."""
    crop: Crop = "center"
    """How an image becomes a square: `center`, ADM's rule for ImageNet, or `fit`; see the data set `folder`."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction kept out of training, in proportion to the classes."""
    seed: int = 0
    """Seed of the split."""
    mirror: bool = False
    """Train on the left-right mirror images too."""

    def content(self) -> str:
        """SHA-256 of the tars' names and sizes."""
        stats = [(tar.name, tar.stat().st_size) for tar in self._tars()]
        return hashlib.sha256(repr(stats).encode()).hexdigest()

    def build(self, context: Context) -> StreamData:
        """Read the headers of all tars. DataError names the tar and the sample at fault."""
        tars, image = self._tars(), ImageShape(self.channels, self.size, self.size)
        with ThreadPoolExecutor(threads()) as pool:
            samples = [sample for found in pool.map(lambda tar: list(_samples(tar)), tars) for sample in found]
        if len(samples) < 2:
            raise DataError(f"{self.path} has {len(samples)} sample(s), and both splits need at least one")
        labels = np.array([sample.label for sample in samples], np.int64)
        classes = class_names(self.classes if self.classes is not None else int(labels.max()) + 1)
        if labels.max() >= len(classes):
            at = samples[int(labels.argmax())]
            raise DataError(f"{at.name} has the class {labels.max()}, and there are {len(classes)}; see data.classes")

        def read(i: int) -> NDArray[np.uint8]:
            try:
                return decode(io.BytesIO(samples[i].read()), image, self.crop)
            except ValueError as error:
                raise DataError(f"{samples[i].name} cannot be decoded ({error}); write that tar anew") from error

        held_out = max(1, round(self.held_out * len(labels)))
        digest = f"{self.content()} {self.crop}"
        return StreamData(read, labels, image, classes, held_out, self.seed, self.mirror, digest)

    def _tars(self) -> list[Path]:
        folder = Path(self.path).expanduser()
        tars = sorted(folder.glob("*.tar")) if folder.is_dir() else []
        if not tars:
            what = "has no .tar files" if folder.is_dir() else "is not a folder"
            raise DataError(f"{folder} {what}; set data.path to a folder of uncompressed .tar files")
        return tars


@dataclass(frozen=True, slots=True)
class Sample:
    """Where an image stands."""

    tar: Path
    key: str
    begin: int
    size: int
    label: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.tar}: {self.key}"

    def read(self) -> bytes:
        """The image file's bytes."""
        with self.tar.open("rb") as file:
            file.seek(self.begin)
            return file.read(self.size)


def _samples(path: Path) -> Iterator[Sample]:
    """Samples of a tar, in its order. A sample's files stand side by side; its name ends at the first dot."""
    key, image, label = "", None, None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # or a header of every file is kept
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                if not member.isreg() or file.startswith("."):
                    continue
                if f"{folder}/{stem}" != key:
                    yield from _sample(path, key, image, label)
                    key, image, label = f"{folder}/{stem}", None, None
                if suffix.lower() in SUFFIXES:
                    image = (member.offset_data, member.size)
                elif suffix == "cls":
                    content = tar.extractfile(member)
                    label = content.read() if content is not None else b""
        yield from _sample(path, key, image, label)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} is not a whole, uncompressed tar file ({error}); write it anew") from error


def _sample(path: Path, key: str, image: tuple[int, int] | None, label: bytes | None) -> Iterator[Sample]:
    if not key:
        return
    key = key.removeprefix("/")
    if image is None or label is None:
        missing = f"image ({', '.join(SUFFIXES)})" if image is None else "class (cls)"
        raise DataError(f"{path}: {key} has no {missing}")
    text = label.decode("ascii", "replace").strip()
    if not text.isdigit():
        raise DataError(f"{path}: {key}.cls is {text[:20]!r}, and a class is a whole number from 0")
    yield Sample(path, key, *image, int(text))
