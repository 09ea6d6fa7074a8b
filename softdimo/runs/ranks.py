"""Work that the ranks of a run share: dealt out in turn, and gathered in the order that one process would have had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Who this process is among those that share the work; alone by default."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this rank writes and speaks."""
        return self.rank == 0

    def mine(self, places: range) -> range:
        """This rank's part of the work: every `world`-th place."""
        return places[self.rank :: self.world]

    def in_order(self, items: Iterable[T]) -> Iterator[T]:
        """The items of all ranks, in the order of their places; every rank gets all, with tensors on its device.

        All ranks enter, each with the items of the places that are `mine`.
        """
        if self.world == 1:
            yield from items
            return
        own = iter(items)
        while True:
            some = [_moved(item, torch.device("cpu")) for item in [next(own, _NONE)] if item is not _NONE]
            found: list[list[T]] = [[] for _ in range(self.world)]
            distributed.all_gather_object(found, some)
            yield from (_moved(item, self.device) for part in found for item in part)
            if not found[-1]:  # places are dealt out in turn, so the last rank is the first to have none
                return

    def agree(self, value: T) -> T:
        """Rank 0's value, on every rank. All ranks enter."""
        if self.world == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, 0)
        return held[0]

    def once(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, which alone does it, on every rank. All ranks enter."""
        return self.agree(work() if self.first else _NONE)


ALONE = Ranks()
_NONE: Any = object()


def _moved(item: T, device: torch.device) -> T:
    """The same item with its tensors on `device`; a tensor that occurs twice is one tensor again."""
    moved: dict[int, Tensor] = {}
    out: T = apply_to_collection(item, Tensor, lambda x: moved.setdefault(id(x), x.to(device)))
    return out
