"""A judge's opinion: do images show the class that was asked for, and do the classes come out as often as asked?"""

from __future__ import annotations

import torch
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Context, Features
from softdimo_plugins.metrics.extract import FeatureMetric, FeatureMetricSpec, Seen


class Accuracy(FeatureMetricSpec):
    """`accuracy`: share of images that the judge gives the label asked for; `class_tv`: total variation of the classes.

    `class_tv` compares the histogram of the judge's classes with that of the labels: 0 is equal, 1 is disjoint. Quote
    the judge's accuracy on real held-out images beside it: a generator above it pleases the judge, not the eye.
    """

    def build(self, context: Context) -> AccuracyMetric:
        """The metric, without images yet."""
        return AccuracyMetric(self.network(context), self.name)


class AccuracyMetric(FeatureMetric):
    """Counts only."""

    formula = "accuracy/1 class-histogram-tv/1"

    def __init__(self, net: Features, name: str = "") -> None:
        super().__init__(net, name)
        self.compares_with = "nothing"
        self.reset()

    def reset(self) -> None:
        """Forget the generated images."""
        self._n, self._right = 0, 0
        self._excess: Tensor | None = None

    def add(self, seen: Seen) -> None:
        """Add generated images with the labels they were asked for.

        Raises DataError for conditions without a class label.
        """
        logits = seen.logits
        classes = logits.shape[1]
        labels = seen.labels.to(logits.device)
        if bool(((labels < 0) | (labels >= classes)).any()):
            raise DataError(
                f"accuracy: labels must be in [0, {classes}), the judge's classes, but there are "
                f"{int(labels.min())} to {int(labels.max())}; drop this metric for prompts without classes"
            )
        predicted = logits.argmax(-1)
        self._n += len(labels)
        self._right += int((predicted == labels).sum())
        excess = torch.bincount(predicted, minlength=classes) - torch.bincount(labels, minlength=classes)
        self._excess = excess if self._excess is None else self._excess + excess

    def _result(self) -> dict[str, float]:
        if self._excess is None:
            raise DataError("accuracy: no images were given")
        return {"accuracy": self._right / self._n, "class_tv": float(self._excess.abs().sum()) / (2 * self._n)}
