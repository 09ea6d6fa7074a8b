"""Class labels alone: all the data that Di[M]O needs."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from softdimo.errors import DataError
from softdimo.inputs.cursor import Labels as Stream
from softdimo.kinds import Batch, Cond, Context, Data, ImageShape
from softdimo.spec import Spec
from softdimo_plugins.data.classes import Classes, class_names


class Labels(Spec):
    """Class labels without images, drawn anew in every batch: for losses that look at no real tokens.

    Di[M]O's published runs draw them uniformly (arXiv 2503.15457: the method is data-free).
    """

    classes: Classes = 1000
    """How many, their names, or `imagenet`: its 1000 names, in the usual order."""
    size: Annotated[int, Field(ge=1)] = 256
    """Height and width of the images that the tokenizer decodes."""
    channels: Literal[1, 3] = 3
    """3 for color, 1 for gray."""
    balanced: bool = False
    """Draw from one permutation of the classes after the other, instead of each label by itself."""

    def build(self, context: Context) -> LabelData:
        """The labels."""
        shape = ImageShape(self.channels, self.size, self.size)
        return LabelData(class_names(self.classes), shape, self.balanced)


class LabelData(Data):
    """Labels 0 to K - 1; each split has one sample of each class."""

    has_images = False

    def __init__(self, classes: tuple[str, ...], image: ImageShape, balanced: bool = False) -> None:
        self.classes, self.image, self.balanced = classes, image, balanced

    def source(self, split: str) -> LabelSource:
        """Each class once, for both splits: there is nothing to hold out."""
        if split not in ("train", "held_out"):
            raise DataError(f"no split {split!r}; this data set has train and held_out")
        return LabelSource(len(self.classes))

    def stream(self, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Stream:
        """Labels without end, uniform over the classes or balanced."""
        return Stream(len(self.classes), batch_size, seed, rank, world, self.balanced)

    def fingerprint(self) -> str:
        """The number of classes is all there is to know."""
        return f"labels:{len(self.classes)}"


class LabelSource:
    """Label i at place i."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __len__(self) -> int:
        return self.classes

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """The labels `index`."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.classes:
            raise IndexError(f"labels are from 0 to {self.classes - 1}")
        return Batch(Cond(torch.as_tensor(index, dtype=torch.int64).clone()))
