"""Tokens that `softdimo tokenize` has made: a data set of any size, mapped into memory."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from softdimo.errors import DataError
from softdimo.inputs.shards import INDEX, Index, ShardSource, read_index, refuse_another, verify_files
from softdimo.kinds import Batch, Cond, Context, Data, ImageShape, Source, Tokenizer, TokenShape
from softdimo.spec import LocalPath, Spec
from softdimo_plugins.data.classes import IMAGENET, Classes, class_names

log = logging.getLogger(__name__)


class Tokens(Spec):
    """A token cache in place of images: what `softdimo tokenize` has written, read from disk as it is needed.

    A cache of another tokenizer than the recipe's is refused.
    """

    path: LocalPath
    """The cache's folder, relative to the recipe that names it."""
    size: Annotated[int, Field(ge=1)] = 256
    """Height and width of the images that were encoded."""
    channels: Literal[1, 3] = 3
    """3 for color, 1 for gray."""
    classes: Classes | None = None
    """Names in place of the cache's own, of as many classes: `imagenet` for folders called by WordNet ids."""
    verify: bool = False
    """Hash every shard before anything is read."""
    random: Annotated[int, Field(ge=0)] = 0
    """So many random samples instead of a cache, to try the code: `--smoke`, whose tokenizers are random too, says 64.
    Nothing can be learned from them."""

    def smoke(self) -> Self:
        """Random tokens: tokenizers of random weights have no cache."""
        return self.model_copy(update={"random": 64})

    def content(self) -> str:
        """SHA-256 of the index, which holds those of the shards."""
        if self.random:
            return ""
        folder = Path(self.path).expanduser()
        read_index(folder)
        return hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()

    def build(self, context: Context) -> Data:
        """Check the index, and hash the shards if asked to. DataError says what is wrong with the cache."""
        image = ImageShape(self.channels, self.size, self.size)
        if self.random:
            log.warning("random tokens stand in for those of %s: this is a trial of the code alone", self.path)
            return RandomTokens(class_names(self.classes or IMAGENET), image, self.random)
        folder = Path(self.path).expanduser()
        index = read_index(folder)
        if index.image != image:
            told = f"{folder} holds tokens of images {_shape(index.image)}, and the recipe says {_shape(image)}"
            raise DataError(f"{told}; set data.size and data.channels to the cache's")
        classes = index.classes if self.classes is None else class_names(self.classes)
        if len(classes) != len(index.classes):
            raise DataError(f"{folder} has {len(index.classes)} classes, and data.classes names {len(classes)}")
        if self.verify:
            verify_files(folder, index)
        return TokenData(folder, index, classes)


def _shape(image: ImageShape) -> str:
    return f"{image.C} x {image.H} x {image.W}"


class TokenData(Data):
    """The splits of a cache."""

    has_images = False

    def __init__(self, folder: Path, index: Index, classes: tuple[str, ...]) -> None:
        self.folder, self.index, self.classes, self.image = folder, index, classes, index.image
        self._sources = {split: ShardSource(folder, index, split) for split in index.splits}

    def meet(self, tokenizer: Tokenizer) -> None:
        """Refuse any tokenizer but the one that made the tokens."""
        refuse_another(self.folder, self.index, tokenizer)

    def source(self, split: str) -> Source:
        """The split `train` or `held_out`."""
        if split not in self._sources:
            raise DataError(f"no split {split!r}; {self.folder} has {' and '.join(self._sources)}")
        return self._sources[split]

    def reference(self) -> Source:
        """The training samples without mirrored copies, which come last."""
        return First(self.source("train"), self.index.reference)

    def fingerprint(self) -> str:
        """Digest of what the tokens were made from, and with what."""
        return self.index.digest()


class First:
    """The first `count` samples of a split."""

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.count = source, count

    def __len__(self) -> int:
        return self.count

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """The samples at `index`."""
        return self.source.get(index)


class RandomTokens(Data):
    """Uniformly random tokens of the shape of the tokenizer that it meets, the same each time."""

    has_images = False

    def __init__(self, classes: tuple[str, ...], image: ImageShape, count: int) -> None:
        self.classes, self.image, self.count = classes, image, count
        self.shape: TokenShape | None = None

    def meet(self, tokenizer: Tokenizer) -> None:
        """Take its shape."""
        self.shape = tokenizer.shape

    def source(self, split: str) -> Source:
        """The split `train` or `held_out`, of as many samples."""
        if split not in ("train", "held_out"):
            raise DataError(f"no split {split!r}; this data set has train and held_out")
        return RandomSource(self, ("train", "held_out").index(split))

    def fingerprint(self) -> str:
        """Nobody shall mistake them for data."""
        return f"random tokens: {self.count} of {len(self.classes)} classes"


class RandomSource:
    """A split of random tokens; the classes take turns."""

    def __init__(self, data: RandomTokens, seed: int) -> None:
        self.data, self.seed = data, seed

    def __len__(self) -> int:
        return self.data.count

    def cond(self, index: Int[Tensor, "B"]) -> Cond:
        """Labels at `index`."""
        return Cond(torch.as_tensor(index) % len(self.data.classes))

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """Tokens and labels at `index`."""
        shape = self.data.shape
        if shape is None:
            raise DataError("random tokens have the shape of the recipe's tokenizer; add a `tokenizer:` section")
        rng = torch.Generator().manual_seed(self.seed)
        tokens = torch.randint(shape.V, (len(self), shape.L, shape.G), generator=rng)
        return Batch(self.cond(index), tokens=tokens[index])
