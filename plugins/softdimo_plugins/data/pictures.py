"""Image files: decoding them to one size, and data sets that decode them each time they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Batch, Cond, Data, ImageShape
from softdimo_plugins.data.arrays import stratified_split

Crop = Literal["fit", "center"]
"""`fit`: the largest square around the center, resized at once (Lanczos). `center`: the rule of ADM (guided-diffusion),
with which ImageNet's usual statistics were made: halved by averaging 2 x 2 pixels while the shorter side is at least
twice the size, then that side resized to the size (bicubic), then the center cut out. Unlike in ADM's script, the
orientation that a camera has noted is followed."""


def threads() -> int:
    """How many decode at a time."""
    return min(16, os.cpu_count() or 1)


def decode(file: Path | IO[bytes], image: ImageShape, crop: Crop = "fit") -> NDArray[np.uint8]:
    """The image [C H W] in a file: upright, on white where it is transparent, the first picture of an animation.

    Raises ValueError, saying why, where it cannot be decoded.
    """
    try:
        with Image.open(file) as opened:
            picture = _plain(ImageOps.exif_transpose(opened)).convert("L" if image.C == 1 else "RGB")
            picture = _center(picture, image.H) if crop == "center" else _fit(picture, image.H)
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error, zlib.error and more
        raise ValueError(str(error) or type(error).__name__) from error
    return np.asarray(picture, np.uint8).reshape(image.H, image.W, image.C).transpose(2, 0, 1)


def _fit(picture: Image.Image, size: int) -> Image.Image:
    return ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)


def _center(picture: Image.Image, size: int) -> Image.Image:
    width, height = picture.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        picture = picture.resize((width, height), Image.Resampling.BOX)
    scale = size / min(width, height)
    width, height = round(width * scale), round(height * scale)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def _plain(image: Image.Image) -> Image.Image:
    """Without transparency (on white), and 16-bit gray brought to 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        return Image.fromarray((values / (257 if values.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image


Read = Callable[[int], NDArray[np.uint8]]
"""Decodes image i: [C H W]. DataError names what cannot be decoded."""


class StreamSource:
    """Rows of images that are decoded when asked for; with `mirror`, sample n + i is the mirror image of sample i."""

    def __init__(self, read: Read, labels: Tensor, rows: Tensor, mirror: bool = False) -> None:
        self.read, self.labels, self.rows, self.mirror = read, labels, rows, mirror

    def __len__(self) -> int:
        return len(self.rows) * (2 if self.mirror else 1)

    def cond(self, index: Int[Tensor, "B"]) -> Cond:
        """Labels at `index`; nothing is decoded."""
        return Cond(self.labels[self.rows[index % len(self.rows)]])

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """Images [B C H W] in [0, 1] and labels at `index`, each in [0, len); several are decoded at a time."""
        rows = self.rows[index % len(self.rows)].tolist()
        with ThreadPoolExecutor(threads()) as pool:
            images = torch.from_numpy(np.stack(list(pool.map(self.read, rows)))).float() / 255
        flipped = (index >= len(self.rows))[:, None, None, None]
        return Batch(self.cond(index), torch.where(flipped, images.flip(-1), images))


class StreamData(Data):
    """Images with a label in [0, K) each, split once into `train` and `held_out`; never all in memory."""

    def __init__(
        self,
        read: Read,
        labels: NDArray[np.int64],
        image: ImageShape,
        classes: Sequence[str],
        held_out: int,
        seed: int,
        mirror: bool,
        digest: str,
    ) -> None:
        """`digest` identifies the files and how they are decoded."""
        self.image, self.classes = image, tuple(classes)
        train, held = (torch.from_numpy(rows) for rows in stratified_split(labels, held_out, seed))
        targets = torch.from_numpy(labels)
        self._sources = {
            "train": StreamSource(read, targets, train, mirror),
            "held_out": StreamSource(read, targets, held),
        }
        about = repr((digest, tuple(image), self.classes, held_out, seed, mirror))
        self._fingerprint = hashlib.sha256(about.encode() + labels.tobytes()).hexdigest()

    def source(self, split: str) -> StreamSource:
        """The split `train` (mirror images included, if asked for) or `held_out` (never mirrored)."""
        if split not in self._sources:
            raise DataError(f"no split {split!r}; this data set has {' and '.join(self._sources)}")
        return self._sources[split]

    def reference(self) -> StreamSource:
        """The training images without their mirror images."""
        train = self._sources["train"]
        return StreamSource(train.read, train.labels, train.rows)

    def fingerprint(self) -> str:
        """SHA-256 of what the files are (see the data set), labels, classes and split."""
        return self._fingerprint
