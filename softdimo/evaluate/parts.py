"""What the metrics have seen of a row so far, in files, so that a row of 50,000 images survives its process."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softdimo.errors import CheckpointError
from softdimo.evaluate.rows import Stream
from softdimo.files import read_weights, save_weights
from softdimo.kinds import Metric
from softdimo.runs.ranks import Ranks

EVERY = 120.0
"""Seconds of measuring that a killed process may lose; what is seen meanwhile is one file, of 12 kB an image where
Inception looks. Rows that take less leave none."""
Look = tuple[int, list[Any]]
"""Images of a batch, and what each metric saw of them."""


def parts_of(path: Path) -> Path:
    """The folder of the files, beside the table that they are for."""
    return path.with_name(f"{path.stem}-parts")


class Parts:
    """The files of one row. Batches keep their borders and their order, so sums are those of an unbroken evaluation."""

    def __init__(
        self, folder: Path, key: str, judges: Mapping[str, Metric], ranks: Ranks, device: torch.device
    ) -> None:
        self.folder, self.key, self.ranks, self.device = folder, key[:16], ranks, device
        self.types = {name: metric.seen_type for name, metric in judges.items()}
        self._seen: dict[int, list[Look]] = {}
        self._pending: list[tuple[int, list[str], Look]] = []
        self._saved = time.monotonic()
        names = sorted(file.name for file in folder.glob(f"{self.key}-*.safetensors"))
        names = ranks.agree(names)
        self._files = len(names)
        for name in names:
            state = ranks.agree(read_weights(folder / name) if ranks.first else {})
            self._restore(state, folder / name)

    @property
    def scratch(self) -> Path:
        """A folder of the row's own, for what metrics write of its images; made by who needs it."""
        return self.folder / self.key

    def looks(self, seed: int, judges: Mapping[str, Metric], stream: Callable[[int], Stream]) -> Iterator[Look]:
        """What the metrics see of the images of a seed, in order: from the files first, then of `stream(images seen)`.

        `judges` are those that this was made with, or some of them. All ranks enter; all see everything.
        """
        first = 0
        for look in self._seen.pop(seed, ()):
            first += look[0]
            yield look
        batches = ((len(img), [m.look(img, cond) for m in judges.values()]) for img, cond in stream(first))
        try:
            for look in self.ranks.in_order(batches):
                self._keep(seed, list(judges), look)
                yield look
        except KeyboardInterrupt:
            self._save()
            raise

    def remove(self) -> None:
        """Delete the row's files: it stands in the table."""
        for file in self.folder.glob(f"{self.key}-*.safetensors"):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _keep(self, seed: int, names: list[str], look: Look) -> None:
        if self.ranks.first and None not in self.types.values():
            self._pending.append((seed, names, look))
            if time.monotonic() - self._saved > EVERY:
                self._save()

    def _save(self) -> None:
        """Write what is pending as one file: each tensor once, and an index of whose they are."""
        if not self._pending:
            return
        tensors: dict[int, Tensor] = {}
        index = []
        for seed, names, (count, seen) in self._pending:
            for tensor in (t for each in seen for t in each):
                tensors.setdefault(id(tensor), tensor)
            index.append([seed, count, {name: list(map(id, each)) for name, each in zip(names, seen, strict=True)}])
        state = {str(key): tensor for key, tensor in tensors.items()}
        state["index"] = torch.tensor(list(json.dumps(index).encode()), dtype=torch.uint8)
        save_weights(self.folder / f"{self.key}-{self._files:04d}.safetensors", state)
        self._files, self._pending, self._saved = self._files + 1, [], time.monotonic()

    def _restore(self, state: Mapping[str, Tensor], path: Path) -> None:
        try:
            index = json.loads(bytes(state["index"].tolist()))
            here = {name: tensor.to(self.device) for name, tensor in state.items()}
            for seed, count, seen in index:
                each = [t(*(here[str(k)] for k in keys)) for name, keys in seen.items() if (t := self.types[name])]
                self._seen.setdefault(seed, []).append((count, each))
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is no part of this evaluation ({error!r}); delete it") from error
