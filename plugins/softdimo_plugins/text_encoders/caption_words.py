"""Words of a closed vocabulary as fixed random vectors: the text encoder of small worlds, with nothing to train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Context, TextEncoder
from softdimo.math.digest import seed_of
from softdimo.spec import NetworkSpec
from softdimo_plugins.captions.grammar import LONGEST, vocabulary


class Words(NetworkSpec):
    """`states`: for each word its vector plus that of its place; `pooled`: the mean of the words' vectors.

    Vectors are standard normal, drawn once and for all from the word: nearly orthogonal, so that what a teacher makes
    of them first is as good as a table of its own. Places without a word have a vector too.
    """

    vocabulary: Annotated[tuple[str, ...], Field(min_length=1)] = vocabulary()
    """The words; those of the data set `captions` by default."""
    width: Annotated[int, Field(ge=1)] = 64
    """Numbers in a vector. The words and places must not be more, if vectors are to be told apart linearly."""
    length: Annotated[int, Field(ge=1)] = LONGEST
    """Places T: words of the longest prompt."""

    def ready(self) -> bool:
        """The settings determine the vectors."""
        return True

    def build(self, context: Context) -> WordVectors:
        """The encoder."""
        return WordVectors(self)


class WordVectors(TextEncoder):
    """The encoder of `Words`."""

    words: Tensor
    places: Tensor

    def __init__(self, spec: Words) -> None:
        super().__init__()
        self.numbers = {word: i + 1 for i, word in enumerate(spec.vocabulary)}
        self.register_buffer("words", _vectors(("", *spec.vocabulary), spec.width), persistent=False)
        self.register_buffer("places", _vectors(range(spec.length), spec.width), persistent=False)

    def encode(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """`states` [B T D] and `pooled` [B D]. DataError for prompts that are too long or have unknown words."""
        ids = torch.tensor([self._numbered(prompt) for prompt in prompts], device=self.words.device)
        vectors = self.words[ids]
        said = (ids > 0)[..., None].to(vectors.dtype)
        return {"states": vectors + self.places, "pooled": (vectors * said).sum(1) / said.sum(1).clamp(min=1)}

    def _numbered(self, prompt: str) -> list[int]:
        words, length = prompt.split(), len(self.places)
        if len(words) > length:
            raise DataError(f"the prompt {prompt!r} has {len(words)} words, more than {length}; see text_encoder.length")
        if unknown := [word for word in words if word not in self.numbers]:
            raise DataError(
                f"the prompt {prompt!r} has words that are not in text_encoder.vocabulary: {', '.join(unknown)} "
                f"(known: {', '.join(self.numbers)})"
            )
        return [self.numbers[word] for word in words] + [0] * (length - len(words))


def _vectors(things: Sequence[object], width: int) -> Tensor:
    """A standard normal vector for each thing, which depends on the thing and the width alone."""
    draws = (torch.Generator().manual_seed(seed_of("words", type(thing).__name__, thing)) for thing in things)
    return torch.stack([torch.randn(width, generator=rng) for rng in draws])
