"""Inception score: are single images sure of their class, and are the classes many?"""

from __future__ import annotations

from typing import Annotated, Any, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Context, Features
from softdimo_plugins.metrics.extract import FeatureMetric, FeatureMetricSpec, Seen


class InceptionScore(FeatureMetricSpec):
    """`inception_score` = exp E_x KL(p(y|x) || p(y)), mean over splits; from 1 to the number of classes.

    Salimans et al. 2016.
    """

    splits: Annotated[int, Field(ge=1)] = 1
    """Consecutive parts that are scored apart and averaged (10 is the custom for 50,000 ImageNet samples)."""

    def build(self, context: Context) -> InceptionScoreMetric:
        """The metric, without images yet."""
        return InceptionScoreMetric(self.network(context), self.splits, self.name)

    def smoke(self) -> Self:
        """Two parts at most, for few images."""
        return self.model_copy(update={"splits": min(2, self.splits)})


def inception_score(logits: Float[Tensor, "N K"], splits: int = 1) -> float:
    """exp of the mean KL divergence to the marginal, in float64, mean over `splits` consecutive equal parts (+-1).

    Raises DataError where there are fewer images than splits.
    """
    if len(logits) < splits:
        raise DataError(f"inception_score: {len(logits)} images cannot be split into {splits} parts")
    scores = []
    for part in logits.double().log_softmax(-1).tensor_split(splits):
        marginal = part.exp().mean(0)
        # xlogy keeps 0 log 0 = 0 for classes that no image of the part has
        kl = (part.exp() * part.clamp_min(-700)).sum(-1).mean() - torch.special.xlogy(marginal, marginal).sum()
        scores.append(float(kl.exp()))
    return sum(scores) / splits


class InceptionScoreMetric(FeatureMetric):
    """Keeps the logits of the generated images."""

    formula = "inception-score/1"

    def __init__(self, net: Features, splits: int = 1, name: str = "") -> None:
        super().__init__(net, name)
        self.compares_with = "nothing"
        self.splits = splits
        self._logits: list[Tensor] = []

    def reset(self) -> None:
        """Forget the generated images."""
        self._logits = []

    def add(self, seen: Seen) -> None:
        """Add generated images."""
        self._logits.append(seen.logits)

    def _result(self) -> dict[str, float]:
        if not self._logits:
            raise DataError("inception_score: no images were given")
        return {"inception_score": inception_score(torch.cat(self._logits), self.splits)}

    def _settings(self) -> dict[str, Any]:
        return {"splits": self.splits}
