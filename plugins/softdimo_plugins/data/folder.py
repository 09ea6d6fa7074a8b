"""A folder of the user's own images."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from softdimo.errors import DataError
from softdimo.kinds import Context, Data, ImageShape
from softdimo.spec import LocalPath, Positive, Spec
from softdimo_plugins.data.arrays import ArrayData
from softdimo_plugins.data.pictures import Crop, StreamData, decode, threads

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
log = logging.getLogger(__name__)


class Folder(Spec):
    """Images below a folder: one class per subfolder, or a single class if the images lie directly in it.

    Files are taken in the order of their names. Hidden files and folders and files that are not images by their suffix
    are passed over; links are followed, once each. Animations give their first frame; transparency becomes white.
    """

    path: LocalPath
    """The folder, relative to the recipe that names it."""
    size: Annotated[int, Field(ge=4)] = 32
    """Height and width: the shorter side is resized to it, the longer one cropped around the center."""
    channels: Literal[1, 3] = 3
    """3 for color, 1 for gray."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction kept out of training, in proportion to the classes."""
    seed: int = 0
    """Seed of the split."""
    mirror: bool = False
    """Train on the left-right mirror images too; leave it off for text and digits."""
    skip_bad: bool = False
    """Leave out files that cannot be decoded, with a warning that names them, instead of stopping. Where images are not
    kept in memory, all are decoded once more at the start to find these."""
    crop: Crop = "fit"
    """How an image becomes a square. `fit`: the largest square around the center, resized at once (Lanczos). `center`:
    ADM's rule for ImageNet (halvings, bicubic to the shorter side, center)."""
    in_memory: Literal["auto"] | bool = "auto"
    """Decode everything once and keep it, one byte per value, or decode images each time they are asked for; `auto`
    keeps what fits into `memory_gb`. What is not kept is told from other data by names and sizes of files alone."""
    memory_gb: Positive = 8.0
    """Largest size of a decoded set that is kept in memory."""

    def content(self) -> str:
        """SHA-256 of the images' names and bytes; bytes are read again only when a size or a time has changed.

        Of a set that is not kept in memory: names and sizes.
        """
        root = Path(self.path).expanduser()
        try:
            files = [file for found in find_classes(root).values() for file in found]
            if not self._kept(len(files)):
                digest, above = hashlib.sha256(), len(str(root / "x")) - 1
                for file in files:
                    digest.update(f"{str(file)[above:]}\0{file.stat().st_size}\0".encode())
                return digest.hexdigest()
            stats = [(file, file.stat()) for file in files]
            return _digest(root, tuple((file, s.st_size, s.st_mtime_ns) for file, s in stats))
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error

    def build(self, context: Context) -> Data:
        """List the images, and decode them where they are kept. DataError names the folder or the files at fault."""
        root = Path(self.path).expanduser()
        try:
            classes = find_classes(root)
        except OSError as error:
            raise DataError(f"cannot list {error.filename}: {error.strerror}") from error
        files = [(file, k) for k, name in enumerate(classes) for file in classes[name]]
        shape = ImageShape(self.channels, self.size, self.size)
        kept = self._kept(len(files))
        if kept and self._size(len(files)) > self.memory_gb * 1e9:
            raise DataError(
                f"{root}: {len(files)} images of {self.channels} x {self.size} x {self.size} take "
                f"{self._size(len(files)) / 1e9:.3g} GB, more than memory_gb: {self.memory_gb:g}; lower size, raise "
                "memory_gb, or set in_memory: false"
            )
        pixels = np.empty((len(files), *shape), np.uint8) if kept else None
        if kept or self.skip_bad:
            usable = self._decodable([file for file, _ in files], shape, pixels)
            files = [files[i] for i in usable]
            pixels = pixels[usable] if pixels is not None and len(usable) < len(pixels) else pixels
        labels = np.array([k for _, k in files], np.int64)
        for name, count in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True):
            if count < 2:
                raise DataError(
                    f"{root}: class {name!r} has {count} usable image(s), at least 2 are needed (to train on "
                    "one and hold out another)"
                )
        held_out = max(1, round(self.held_out * len(labels)))
        if pixels is not None:
            return ArrayData(pixels, labels, tuple(classes), held_out, self.seed, self.mirror)
        paths = [file for file, _ in files]

        def read(i: int) -> NDArray[np.uint8]:
            try:
                return decode(paths[i], shape, self.crop)
            except ValueError as error:
                raise DataError(
                    f"{paths[i]} cannot be decoded ({error}); mend or delete it, or set data.skip_bad: true"
                ) from error

        digest = f"{self.content()} {self.crop} {len(paths)}"
        return StreamData(read, labels, shape, tuple(classes), held_out, self.seed, self.mirror, digest)

    def _size(self, count: int) -> int:
        """Bytes of so many decoded images."""
        return count * self.channels * self.size**2

    def _kept(self, count: int) -> bool:
        """Whether so many images are kept in memory."""
        return self._size(count) <= self.memory_gb * 1e9 if self.in_memory == "auto" else self.in_memory

    def _decodable(
        self, files: Sequence[Path], shape: ImageShape, pixels: NDArray[np.uint8] | None
    ) -> NDArray[np.int64]:
        """Indices of the files that can be decoded, into `pixels` if it is there; the others stop, or are told."""

        def one(i: int) -> str:
            try:
                image = decode(files[i], shape, self.crop)
            except ValueError as error:
                return f"{files[i]}: {error}"
            if pixels is not None:
                pixels[i] = image
            return ""

        with ThreadPoolExecutor(threads()) as pool:
            faults = list(pool.map(one, range(len(files))))
        bad = [fault for fault in faults if fault]
        if bad:
            shown = "\n  ".join(bad[:10] + ([f"... and {len(bad) - 10} more"] if len(bad) > 10 else []))
            if not self.skip_bad:
                raise DataError(
                    f"{len(bad)} of {len(files)} images cannot be decoded; mend or delete them, or set skip_bad: true"
                    f"\n  {shown}"
                )
            log.warning("%d of %d images were left out, they cannot be decoded\n  %s", len(bad), len(files), shown)
        return np.array([i for i, fault in enumerate(faults) if not fault], np.int64)


@lru_cache(maxsize=4)
def _digest(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash of the files (with their sizes and times) below `root`."""

    def one(file: Path) -> bytes:
        return f"{file.relative_to(root)}\0".encode() + hashlib.sha256(file.read_bytes()).digest()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return hashlib.sha256(b"".join(pool.map(one, (file for file, _, _ in files)))).hexdigest()


def find_classes(root: Path) -> dict[str, list[Path]]:
    """Class names with their image files, in the order of the names; DataError says what is wrong with the folder."""
    if not root.is_dir():
        raise DataError(
            f"{root} {'is not a folder' if root.exists() else 'does not exist'}; set data.path to a folder of images"
        )
    visible = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    top = [entry for entry in visible if entry.suffix.lower() in SUFFIXES and not entry.is_dir()]
    folders = [entry for entry in visible if entry.is_dir() and not entry.name.startswith("__")]
    if top and folders:
        raise DataError(
            f"{root} has {len(top)} images beside the subfolder(s) {', '.join(f.name for f in folders[:5])}; either "
            "all images lie in it (one class), or all in subfolders (one class each)"
        )
    if not top and not folders:
        raise DataError(f"{root} has no images ({', '.join(sorted(SUFFIXES))}) and no subfolders")
    if top:
        return {root.resolve().name: top}
    classes = {folder.name: list(_images(folder, set())) for folder in folders}
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise DataError(
            f"{root}: no images in the subfolder(s) {', '.join(empty)}; a subfolder is a class, delete the empty ones"
        )
    return classes


def _images(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Images at any depth below `folder`, ordered by name; a folder reached twice through links is read once."""
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _images(folder / entry.name, seen)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield folder / entry.name
