"""A resumable stream of shuffled batches over a map-style split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from softdimo.errors import DataError
from softdimo.kinds import Batch, Source


class Shuffled:
    """Endless batches; epoch k is a permutation drawn from (seed, k). State: epoch and offset.

    Every rank draws the same permutation and takes its slice of each global batch, so the samples of one global batch
    do not depend on the number of ranks.
    """

    def __init__(self, source: Source, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if len(source) < batch_size * world:
            raise DataError(
                f"the training split has {len(source)} samples, fewer than one batch of {batch_size} x {world} ranks; "
                "lower train.batch_size"
            )
        self.source, self.batch_size, self.seed, self.rank, self.world = source, batch_size, seed, rank, world
        self.epoch, self.offset = 0, 0
        self._order: torch.Tensor | None = None

    def __iter__(self) -> Shuffled:
        return self

    def __next__(self) -> Batch:
        size = self.batch_size * self.world
        if self.offset + size > len(self.source):
            self.epoch, self.offset, self._order = self.epoch + 1, 0, None
        if self._order is None:
            rng = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
            self._order = torch.randperm(len(self.source), generator=rng)
        begin = self.offset + self.rank * self.batch_size
        self.offset += size
        return self.source.get(self._order[begin : begin + self.batch_size])

    def state_dict(self) -> dict[str, Any]:
        """Epoch and offset (in samples of the global stream)."""
        return {"epoch": self.epoch, "offset": self.offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved epoch and offset."""
        self.epoch, self.offset, self._order = int(state["epoch"]), int(state["offset"]), None
