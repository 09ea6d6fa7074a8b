"""Words as fixed random vectors: the text encoder of small worlds, with nothing to train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from softdimo.kinds import Context, TextEncoder
from softdimo.math.digest import seed_of
from softdimo.spec import NetworkSpec


class Words(NetworkSpec):
    """`states`: for each word its vector, that of its place, and those of the words before it; `pooled`: their mean.

    Vectors are standard normal, drawn once and for all from the word itself: nearly orthogonal, so that a linear layer
    makes any table of a small vocabulary out of them. Any word has one, those that a teacher has never seen too. The
    vectors of the words before are turned, by a rotation for each distance, so that `red` in the state of `bear` is
    another thing than `red` itself: which adjective goes with which noun need not be learned.
    """

    width: Annotated[int, Field(ge=1)] = 64
    """Numbers D in a vector. The more there are than words and places, the better these are told apart."""
    length: Annotated[int, Field(ge=1)] = 8
    """Places T. Of longer prompts the first words count."""
    before: Annotated[int, Field(ge=0)] = 2
    """How many words before it a state tells of."""

    def ready(self) -> bool:
        """The settings determine the vectors."""
        return True

    def build(self, context: Context) -> WordVectors:
        """The encoder."""
        return WordVectors(self.width, self.length, self.before)


class WordVectors(TextEncoder):
    """The encoder of `Words`."""

    places: Tensor
    turns: Tensor

    def __init__(self, width: int, length: int, before: int) -> None:
        super().__init__()
        self.width, self.length = width, length
        self.register_buffer("places", torch.stack([vector(str(i), width, "place") for i in range(length)]))
        self.register_buffer("turns", torch.stack([rotation(width, k) for k in range(1 + before)]))

    def encode(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """`states` [B T D] and `pooled` [B D] (0 for a prompt without words)."""
        vectors = self.places.new_zeros(len(prompts), self.length, self.width)
        count = self.places.new_zeros(len(prompts), 1)
        for i, words in enumerate(prompt.split()[: self.length] for prompt in prompts):
            count[i] = len(words)
            for j, word in enumerate(words):
                vectors[i, j] = vector(word, self.width)
        states = self.places.expand_as(vectors)
        for distance, turn in enumerate(self.turns):
            states = states + functional.pad(vectors @ turn, (0, 0, distance, 0))[:, : self.length]
        return {"states": states, "pooled": vectors.sum(1) / count.clamp(min=1)}


def rotation(width: int, distance: int) -> Float[Tensor, "width width"]:
    """A random rotation for each distance; none at all for distance 0."""
    if not distance:
        return torch.eye(width)
    rows = torch.stack([vector(f"{distance} {i}", width, "rotation") for i in range(width)])
    q, r = torch.linalg.qr(rows.double())
    out: Tensor = (q * r.diagonal().sign()).float()
    return out


@lru_cache(maxsize=2**14)
def vector(what: str, width: int, kind: str = "word") -> Float[Tensor, "width"]:
    """The standard normal vector of a word or a place."""
    return torch.randn(width, generator=torch.Generator().manual_seed(seed_of(kind, what)))
