"""The UCI digits, 1,797 images of 8 x 8, from the file inside scikit-learn."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from softdimo.kinds import Context
from softdimo.spec import Spec
from softdimo_plugins.data.arrays import ArrayData
from softdimo_plugins.data.packages import package_file, read_csv, unzip


class Digits(Spec):
    """Handwritten digits, 8 x 8, one channel (extra `digits`). The smallest set: for trials of seconds.

    A digit's class nearly fixes its 8 x 8 image, so that one factorized step has nothing to learn; its parity does not.
    """

    condition: Literal["parity", "digit"] = "parity"
    """Two classes `even` and `odd`, or ten classes `0` to `9`."""
    held_out: Annotated[int, Field(ge=10)] = 300
    """Images kept out of training, in proportion to the classes."""
    seed: int = 0
    """Seed of the split."""

    def build(self, context: Context) -> ArrayData:
        """Read and split. DataError names what to install."""
        name = "digits.csv.gz"
        rows = read_csv(unzip(package_file("scikit-learn", name, "digits"), name), 65, name)
        images = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)  # 17 levels
        labels = rows[:, -1].astype(np.int64)
        if self.condition == "parity":
            return ArrayData(images, labels % 2, ("even", "odd"), self.held_out, self.seed)
        return ArrayData(images, labels, tuple("0123456789"), self.held_out, self.seed)
