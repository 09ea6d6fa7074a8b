"""Animal silhouettes: 9,716 different 28 x 28 images of ten animals, from the package animal-shape-mnist."""

from __future__ import annotations

import gzip
from importlib import metadata
from typing import Annotated

import numpy as np
from pydantic import Field

from softdimo.errors import DataError
from softdimo.kinds import Context
from softdimo.spec import Spec
from softdimo_plugins.data.arrays import ArrayData, first_occurrences
from softdimo_plugins.data.packages import check_sha256, package_file, unpickle_array

PACKAGE, VERSION = "animal-shape-mnist", "0.39"
FILES = {
    "animal_data_version_3.gz": "68a30346781a0984f839463a4615d2decb899d1ce65091bb92586311754a34ce",
    "animal_label_version_3.gz": "dec8dba7c469830989fbab46825021a08a38470753a512f27ada847eced97b57",
}
CLASSES = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")


class Animals(Spec):
    """Silhouettes of ten animals, 28 x 28, one channel (extra `demo`).

    Exact duplicates are removed before the split, so that no held-out image is also a training image. The package's own
    modules are never imported; its pickles are checked against their SHA-256 and may hold numpy arrays only.
    """

    held_out: Annotated[int, Field(ge=10)] = 1000
    """Images kept out of training, in proportion to the classes."""
    seed: int = 0
    """Seed of the split."""
    mirror: bool = True
    """Train on the left-right mirror images too (the set as a whole is symmetric)."""

    def build(self, context: Context) -> ArrayData:
        """Read, check, remove duplicates, split. DataError names what to install."""
        images, labels = (self._array(name) for name in FILES)
        images, labels = images.reshape(len(images), -1), labels.reshape(len(labels), -1)
        if (
            images.shape[1] != 28 * 28
            or labels.shape != (len(images), 1)
            or not set(np.unique(labels)) <= set(range(10))
        ):
            raise DataError(
                f"{PACKAGE} holds images {images.shape} and labels {labels.shape}, expected 28 x 28 and 10 classes"
            )
        keep = first_occurrences(images)
        pixels, targets = images[keep].reshape(-1, 1, 28, 28).astype(np.uint8), labels[keep, 0].astype(np.int64)
        return ArrayData(pixels, targets, CLASSES, self.held_out, self.seed, self.mirror)

    @staticmethod
    def _array(name: str) -> np.ndarray:
        data = package_file(PACKAGE, name, "demo")
        what = f"{name} of {PACKAGE} {metadata.version(PACKAGE)}"
        check_sha256(data, FILES[name], what, f"pip install --force-reinstall {PACKAGE}=={VERSION}")
        return unpickle_array(gzip.decompress(data), what)
