"""Captions and composed images: silhouettes of animals, in colors, placed as a caption says, on a pale ground."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Batch, Cond, Context, Data, ImageShape
from softdimo.math.digest import seed_of
from softdimo.spec import Spec
from softdimo_plugins.captions.grammar import TASKS, Caption, Dice, draw
from softdimo_plugins.captions.scenes import ROLLS, Bank, Scene, arrange
from softdimo_plugins.captions.typical import closest, prototype
from softdimo_plugins.data.animals import CLASSES, Animals
from softdimo_plugins.data.arrays import ArraySource

FORMAT = "captions/1"
"""Changes with the images of the same settings."""
SHAPE = 14
"""Pixels, each way, in which silhouettes are compared."""


class Captions(Spec):
    """RGB images of one to four colored animals with captions like `two red bears left of a blue bird` (extra `demo`).

    Image i of a split is a function of (seed, i). The silhouettes are those of `animals`, and held-out images are made
    of its held-out ones. Captions ask in equal shares for the six things that GenEval (Ghosh et al. 2023) asks for, and
    for count, color and position at once; an image shows what its caption says and nothing else. Labels are -1.
    """

    animals: Annotated[tuple[str, ...], Field(min_length=2)] = ("bear", "bird", "cat", "elephant", "giraffe", "horse")
    """Which animals there are."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = TASKS
    """What captions ask for, in equal shares."""
    typical: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of each animal's silhouettes that are used: those most like one another, all seen from one side."""
    size: Annotated[int, Field(ge=24)] = 32
    """Height and width of the images."""
    samples: Annotated[int, Field(ge=1)] = 20000
    """Training images."""
    held_out: Annotated[int, Field(ge=1)] = 2000
    """Held-out images."""
    seed: int = 0
    """Seed of the images."""

    def build(self, context: Context) -> CaptionData:
        """Read the silhouettes. DataError names what to install."""
        for what, given, known in (("animal", self.animals, CLASSES), ("task", self.tasks, TASKS)):
            if unknown := sorted(set(given) - set(known)):
                raise DataError(f"captions: no {what} is called {', '.join(unknown)}; there are {', '.join(known)}")
        return CaptionData(self, context)


class CaptionData(Data):
    """The data set of `Captions`."""

    def __init__(self, spec: Captions, context: Context) -> None:
        self.spec, self.image, self.classes = spec, ImageShape(3, spec.size, spec.size), spec.animals
        animals = Animals(mirror=False).build(context)
        banks = {split: _banks(animals.source(split), spec.animals) for split in ("train", "held_out")}
        models = {name: prototype(bank.shapes(SHAPE)) for name, bank in banks["train"].items()}
        self._sources = {}
        for split, samples in (("train", spec.samples), ("held_out", spec.held_out)):
            chosen: list[Tensor] = []
            rows: dict[str, Tensor] = {}
            for name, bank in banks[split].items():
                n = math.ceil(spec.typical * len(bank.silhouettes))
                which, mirrored = closest(bank.shapes(SHAPE), models[name], n)
                images = bank.silhouettes[which]
                rows[name] = torch.arange(n) + sum(len(images) for images in chosen)
                chosen.append(torch.where(mirrored[:, None, None, None], images.flip(-1), images))
            self._sources[split] = CaptionSource(spec, split, samples, Bank(torch.cat(chosen)), rows)
        told = repr((FORMAT, spec.model_dump_json(exclude={"use"}), animals.fingerprint()))
        self._fingerprint = hashlib.sha256(told.encode()).hexdigest()

    def source(self, split: str) -> CaptionSource:
        """The split `train` or `held_out`."""
        if split not in self._sources:
            raise DataError(f"no split {split!r}; this data set has {' and '.join(self._sources)}")
        return self._sources[split]

    def conditions(self, n: int) -> Cond:
        """Captions, one task after the other in turn; neither split's."""
        rolls = _rolls(self.spec.seed, "conditions", n)
        return conditions([_caption(self.spec, i, Dice(rolls[i])) for i in range(n)])

    def fingerprint(self) -> str:
        """SHA-256 of the settings and the silhouettes."""
        return self._fingerprint


class CaptionSource:
    """Images composed as they are read."""

    def __init__(self, spec: Captions, split: str, samples: int, bank: Bank, rows: dict[str, Int[Tensor, "n"]]) -> None:
        self.spec, self.bank, self.rows = spec, bank, rows
        self.rolls = _rolls(spec.seed, split, samples)

    def __len__(self) -> int:
        return len(self.rolls)

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """Images and captions at `index`."""
        captions, scenes = zip(*(self.scene(i) for i in index.tolist()), strict=True)
        return Batch(conditions(captions), self.bank.render(scenes, self.spec.size))

    def cond(self, index: Int[Tensor, "B"]) -> Cond:
        """The captions alone."""
        return conditions([_caption(self.spec, i, Dice(self.rolls[i])) for i in index.tolist()])

    def scene(self, i: int) -> tuple[Caption, Scene]:
        """What image i shows."""
        dice = Dice(self.rolls[i])
        caption = _caption(self.spec, i, dice)
        return caption, arrange(caption, self.rows, dice)


def _banks(source: ArraySource, animals: Sequence[str]) -> dict[str, Bank]:
    """The silhouettes of each animal."""
    labels, images = source.labels[source.rows], source.images[source.rows].float() / 255
    return {name: Bank(images[labels == CLASSES.index(name)]) for name in animals}


def conditions(captions: Sequence[Caption]) -> Cond:
    """Captions as conditions."""
    return Cond(torch.full((len(captions),), -1), tuple(map(str, captions)))


def _caption(spec: Captions, i: int, dice: Dice) -> Caption:
    return draw(spec.tasks[i % len(spec.tasks)], spec.animals, dice)


def _rolls(seed: int, what: str, n: int) -> NDArray[np.float64]:
    """[n ROLLS] in [0, 1); row i does not depend on n. numpy promises never to change the stream of `RandomState`."""
    return np.random.RandomState(seed_of("captions", seed, what) % 2**32).random_sample((n, ROLLS))
