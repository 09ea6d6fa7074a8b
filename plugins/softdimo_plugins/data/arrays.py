"""A data set held in memory as uint8: what every built-in data set turns into."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Batch, Cond, Data, ImageShape


def first_occurrences(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Indices of the images [N ...] that differ, bit by bit, from every earlier one, in their order."""
    seen: dict[bytes, int] = {}
    for i, image in enumerate(images):
        seen.setdefault(image.tobytes(), i)
    return np.fromiter(seen.values(), np.int64, len(seen))


def stratified_split(
    labels: NDArray[np.int64], held_out: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (train, held out), both sorted: `held_out` samples in all, from each class in proportion to its size.

    Largest-remainder apportionment. `RandomState` is used because numpy promises never to change its stream.
    """
    if not 0 < held_out < len(labels):
        raise DataError(f"cannot hold out {held_out} of {len(labels)} samples; both splits need at least one")
    names, counts = np.unique(labels, return_counts=True)
    quota = counts * held_out / len(labels)
    take = np.floor(quota).astype(np.int64)
    take[np.argsort(take - quota, kind="stable")[: held_out - int(take.sum())]] += 1
    rng = np.random.RandomState(seed)
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == k))[:n] for k, n in zip(names, take, strict=True)]
    )
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    return rest, np.sort(chosen)


class ArraySource:
    """Rows of the images; with `mirror`, sample n + i is the left-right mirror image of sample i of n."""

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor, mirror: bool = False) -> None:
        self.images, self.labels, self.rows, self.mirror = images, labels, rows, mirror

    def __len__(self) -> int:
        return len(self.rows) * (2 if self.mirror else 1)

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """Images [B C H W] in [0, 1] and labels at `index`, each in [0, len)."""
        rows = self.rows[index % len(self.rows)]
        images = self.images[rows].float() / 255
        flipped = (index >= len(self.rows))[:, None, None, None]
        return Batch(Cond(self.labels[rows]), torch.where(flipped, images.flip(-1), images))


class ArrayData(Data):
    """Images uint8 [N C H W] with a label in [0, K) each, split once into `train` and `held_out`."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        classes: Sequence[str],
        held_out: int,
        seed: int,
        mirror: bool = False,
    ) -> None:
        train, held = stratified_split(labels, held_out, seed)
        images, labels = np.ascontiguousarray(images), np.ascontiguousarray(labels)
        self.image = ImageShape(*images.shape[1:])
        self.classes = tuple(classes)
        pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
        self._sources = {
            "train": ArraySource(pixels, targets, torch.from_numpy(train), mirror),
            "held_out": ArraySource(pixels, targets, torch.from_numpy(held)),
        }
        digest = hashlib.sha256(repr((images.shape, self.classes, held_out, seed, mirror)).encode())
        digest.update(images.data)
        digest.update(labels.data)
        self._fingerprint = digest.hexdigest()

    def source(self, split: str) -> ArraySource:
        """The split `train` (mirror images included, if asked for) or `held_out` (never mirrored)."""
        if split not in self._sources:
            raise DataError(f"no split {split!r}; this data set has {' and '.join(self._sources)}")
        return self._sources[split]

    def reference(self) -> ArraySource:
        """The training images without their mirror images, which would be each other's nearest neighbors."""
        train = self._sources["train"]
        return ArraySource(train.images, train.labels, train.rows)

    def fingerprint(self) -> str:
        """SHA-256 of pixels, labels, classes and split."""
        return self._fingerprint
