"""Resumable streams of batches: shuffled over a map-style split, as images or as tokens, or class labels alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Batch, Cond, Data, Source, Tokenizer
from softdimo.math.digest import seed_of


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


class Labels:
    """Endless batches of class labels, uniform over K classes, or with `balanced` each class once in K labels.

    A global batch is a function of (seed, position), of which every rank takes its slice. State: labels drawn so far,
    those of all ranks.
    """

    def __init__(
        self, classes: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, balanced: bool = False
    ) -> None:
        self.classes, self.batch_size, self.seed, self.rank, self.world = classes, batch_size, seed, rank, world
        self.balanced, self.drawn = balanced, 0

    def __iter__(self) -> Labels:
        return self

    def __next__(self) -> Batch:
        size = self.batch_size * self.world
        labels = self._permuted(size) if self.balanced else self._uniform(size)
        self.drawn += size
        begin = self.rank * self.batch_size
        return Batch(Cond(labels[begin : begin + self.batch_size]))

    def _uniform(self, size: int) -> Int[Tensor, "B"]:
        return torch.randint(self.classes, (size,), generator=self._generator(self.drawn))

    def _permuted(self, size: int) -> Int[Tensor, "B"]:
        """Labels at the next `size` places of one permutation of the classes after the other."""
        rounds = range(self.drawn // self.classes, -(-(self.drawn + size) // self.classes))
        some = torch.cat([torch.randperm(self.classes, generator=self._generator(k)) for k in rounds])
        begin = self.drawn % self.classes
        return some[begin : begin + size]

    def _generator(self, place: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of("labels", self.seed, place))

    def state_dict(self) -> dict[str, Any]:
        """Labels drawn so far (of the global stream)."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved place."""
        self.drawn = int(state["drawn"])


class Conditions(Data):
    """A data set of which only the conditions are used: nothing is encoded, and images stay where they are."""

    def __init__(self, data: Data) -> None:
        self.data, self.image, self.classes, self.has_images = data, data.image, data.classes, False

    def source(self, split: str) -> ConditionSource:
        """The split's conditions."""
        return ConditionSource(self.data.source(split))

    def conditions(self, n: int) -> Cond:
        """Those of the data set."""
        return self.data.conditions(n)

    def ready(self, cond: Cond) -> Cond:
        """As the data set does."""
        return self.data.ready(cond)

    def fingerprint(self) -> str:
        """That of the data set."""
        return self.data.fingerprint()


class ConditionSource:
    """Conditions of a split; a split that can give them without its images has a method `cond` that does."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """The conditions at `index`."""
        alone = getattr(self.source, "cond", None)
        return Batch(self.source.get(index).cond if alone is None else alone(index))


class Tokenized(Data):
    """A data set whose images are encoded to tokens, once per split; batches carry tokens instead of images."""

    def __init__(self, data: Data, tokenizer: Tokenizer, device: torch.device) -> None:
        self.data, self.tokenizer, self.device = data, tokenizer, device
        self.image, self.classes, self.has_images = data.image, data.classes, False
        self._sources: dict[str, Source] = {}

    def source(self, split: str) -> Source:
        """The split as tokens."""
        if split not in self._sources:
            self._sources[split] = TokenSource(self.data.source(split), self.tokenizer, self.device)
        return self._sources[split]

    def conditions(self, n: int) -> Cond:
        """Those of the images."""
        return self.data.conditions(n)

    def fingerprint(self) -> str:
        """That of the images."""
        return self.data.fingerprint()


class TokenSource:
    """All tokens of a split in memory, as the smallest integer type that holds V."""

    def __init__(self, source: Source, tokenizer: Tokenizer, device: torch.device, batch: int = 256) -> None:
        self.source = source
        tokens, labels = [], []
        self.prompts: list[str] = []
        with torch.inference_mode():
            for index in torch.split(torch.arange(len(source)), batch):
                real = source.get(index)
                if real.images is None:
                    raise DataError("this data gives no images to encode")
                ids = tokenizer.encode(real.images.to(device))
                tokens.append(ids.to("cpu", torch.int16 if tokenizer.shape.V < 2**15 else torch.int32))
                labels.append(real.cond.labels)
                self.prompts += real.cond.prompts
        self.tokens, self.labels = torch.cat(tokens), torch.cat(labels)

    def __len__(self) -> int:
        return len(self.tokens)

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """Tokens and labels at `index`."""
        prompts = tuple(self.prompts[i] for i in index.tolist()) if self.prompts else ()
        return Batch(Cond(self.labels[index], prompts), tokens=self.tokens[index].long())
