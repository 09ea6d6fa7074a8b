"""GenEval's question in a small world: does an image show what its caption says? Per task, and over all."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Cond, Context, Features, Metric
from softdimo.math.digest import digest_module
from softdimo.shapes import Image
from softdimo.spec import NetworkSpec, Spec, component
from softdimo_plugins.captions.grammar import TASKS
from softdimo_plugins.captions.judge import Judge, read


class CaptionAccuracy(Spec):
    """`captions`: mean over tasks of the share of images that are as their captions say; `<task>`: that of each.

    Things in an image are connected pieces of one color, found without a network; a classifier names the animal. All
    must be there: as many as the caption says, of its colors, on its sides, and no others (see `captions.judge`). The
    row of real held-out images tells how often the judge itself is wrong.
    """

    judge: Annotated[NetworkSpec, component("features")]
    """Classifier of single animals, with its weights; it must have had no part in training."""
    name: str = ""
    """Prefix of the numbers' names."""

    def build(self, context: Context) -> CaptionAccuracyMetric:
        """The metric, without images yet."""
        network: Features = context.make(self.judge)
        return CaptionAccuracyMetric(self, Judge(network.eval(), context.classes))


class Seen(NamedTuple):
    """What is kept of a batch."""

    right: Bool[Tensor, "B"]
    task: Int[Tensor, "B"]
    """In the order of `TASKS`."""


class CaptionAccuracyMetric(Metric):
    """Counts only."""

    compares_with = "nothing"
    seen_type = Seen
    formula = "caption-accuracy/1 mean-over-tasks"

    def __init__(self, spec: CaptionAccuracy, judge: Judge) -> None:
        self.spec, self.judge = spec, judge
        self.reset()

    def reset(self) -> None:
        """Forget the generated images."""
        self._asked, self._right = torch.zeros(len(TASKS)), torch.zeros(len(TASKS))

    def look(self, img: Image, cond: Cond) -> Seen:
        """Judge images [B C H W]. DataError for conditions without captions."""
        tasks = torch.tensor([TASKS.index(caption.task) for caption in read(cond)])
        return Seen(self.judge(img.expand(-1, 3, -1, -1), cond).cpu(), tasks)

    def add(self, seen: Seen) -> None:
        """Count."""
        self._asked += torch.bincount(seen.task, minlength=len(TASKS))
        self._right += torch.bincount(seen.task[seen.right], minlength=len(TASKS))

    def update(self, img: Image, cond: Cond) -> None:
        """Add generated images [B C H W]."""
        self.add(self.look(img, cond))

    def result(self) -> dict[str, float]:
        """Shares of the tasks that were asked, and their mean. DataError without images."""
        shares = {t: float(r / n) for t, r, n in zip(TASKS, self._right, self._asked, strict=True) if n}
        if not shares:
            raise DataError("caption_accuracy: no images were given")
        prefix = f"{self.spec.name}/" if self.spec.name else ""
        return {
            prefix + key: value for key, value in ({"captions": sum(shares.values()) / len(shares)} | shares).items()
        }

    def fingerprint(self) -> dict[str, str | int | float]:
        """The formula, the classifier's weights and its classes."""
        return {
            "formula": self.formula,
            "judge": digest_module(self.judge.classifier),
            "animals": " ".join(self.judge.animals),
        }
