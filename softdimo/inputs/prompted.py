"""A data set with prompts: what a text encoder makes of them goes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from softdimo.inputs.encodings import Encodings
from softdimo.kinds import Batch, Cond, Cursor, Data, Source, Tokenizer


class Prompted(Data):
    """A data set of which the prompts get their encodings, and those of the unconditional prompt as `null.<name>`."""

    def __init__(self, data: Data, encodings: Encodings) -> None:
        self.data, self.encodings = data, encodings
        self.image, self.classes, self.has_images = data.image, data.classes, data.has_images

    def ready(self, cond: Cond) -> Cond:
        """Conditions with their encodings; those without prompts as they are."""
        return self.encodings.ready(self.data.ready(cond))

    def meet(self, tokenizer: Tokenizer) -> None:
        """As the data set does."""
        self.data.meet(tokenizer)

    def source(self, split: str) -> Source:
        """The split, its prompts encoded."""
        return PromptedSource(self.data.source(split), self.ready)

    def reference(self) -> Source:
        """Real images; metrics need no encodings, and what decodes tokens makes conditions ready itself."""
        return self.data.reference()

    def stream(self, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Cursor:
        """The data set's own batches, their prompts encoded."""
        return PromptedCursor(self.data.stream(batch_size, seed, rank, world), self.ready)

    def conditions(self, n: int) -> Cond:
        """Those of the data set, not encoded yet: there may be many."""
        return self.data.conditions(n)

    def fingerprint(self) -> str:
        """That of the data set."""
        return self.data.fingerprint()


class PromptedSource:
    """A split whose prompts are encoded as they are read."""

    def __init__(self, source: Source, ready: Callable[[Cond], Cond]) -> None:
        self.source, self.ready = source, ready

    def __len__(self) -> int:
        return len(self.source)

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """The samples at `index`."""
        batch = self.source.get(index)
        return replace(batch, cond=self.ready(batch.cond))

    def cond(self, index: Int[Tensor, "B"]) -> Cond:
        """Their conditions alone, without images where the split can leave them out."""
        alone = getattr(self.source, "cond", None)
        return self.ready(self.source.get(index).cond if alone is None else alone(index))


class PromptedCursor:
    """A stream of batches whose prompts are encoded as they come; its position is that of the stream."""

    def __init__(self, cursor: Cursor, ready: Callable[[Cond], Cond]) -> None:
        self.cursor, self.ready = cursor, ready

    def __iter__(self) -> PromptedCursor:
        return self

    def __next__(self) -> Batch:
        batch = next(self.cursor)
        return replace(batch, cond=self.ready(batch.cond))

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream."""
        return self.cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved position."""
        self.cursor.load_state_dict(state)
