"""The kind `metric` (see `kinds`, which has it too)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from softdimo.batch import Cond
from softdimo.shapes import Image


class Metric(ABC):
    """A number with its provenance. Feed the reference once, then `reset`, `update`, `result` per row.

    `update` is `add(look(...))`. Ranks look at different batches, and all of them add what all have seen, in one order.
    """

    compares_with: Literal["data", "file", "nothing"] = "data"
    """What the generated images are compared with: the data's real images, a reference of its own, or nothing."""
    seen_type: ClassVar[type[tuple[Tensor, ...]] | None] = None
    """The NamedTuple of tensors that `look` gives, if it is one: an interrupted row then goes on where it stopped."""

    def reference(self, img: Image, cond: Cond) -> None:  # noqa: B027
        """Add a batch of real images; ignored by metrics that need none."""

    def begin(self, row: str, seeds: tuple[int, ...], folder: Path) -> None:  # noqa: B027
        """Images of a row come next: its name, and the seeds that draw them, an equal share each, one after the other.

        There are no seeds where nothing is drawn. What a metric must write of the images goes into `folder`, which all
        ranks share, and which stays until the row stands in the table; a row that is interrupted finds it again.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget the generated images, keep the reference."""

    @abstractmethod
    def update(self, img: Image, cond: Cond) -> None:
        """Add a batch of generated images."""

    def look(self, img: Image, cond: Cond) -> Any:
        """What `add` needs of a batch of generated images, in tensors, numbers and collections of them: its features.

        Changes nothing. The batch itself, unless overridden.
        """
        return img, cond

    def add(self, seen: Any) -> None:
        """Add what `look` saw."""
        self.update(*seen)

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Named numbers of the images since `reset`; of several ranks, the first alone is asked."""

    @abstractmethod
    def fingerprint(self) -> dict[str, str | int | float]:
        """What the numbers depend on: formula, hash of the feature network, hash and size of the reference."""

    def notes(self) -> tuple[str, ...]:
        """Reservations about the numbers since `reset`, one sentence each; they are written beside the numbers."""
        return ()

    def statistics(self) -> Mapping[str, Tensor]:
        """What is kept of the reference, for a file that others can compare with (`softdimo statistics`)."""
        return {}
