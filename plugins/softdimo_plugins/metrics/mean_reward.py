"""The mean of a reward: how well generated images do by a judge that training has not seen."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from softdimo.errors import DataError
from softdimo.kinds import Cond, Context, Metric, Reward, rated
from softdimo.shapes import Image, PerSample
from softdimo.spec import Spec, component
from softdimo_plugins.metrics.rated import identity


class MeanReward(Spec):
    """`<name>`: mean over images of a reward. An evaluation refuses networks that took part in training."""

    reward: Annotated[Spec, component("reward")]
    """The reward, differentiable or not."""
    name: Annotated[str, Field(min_length=1)] = "mean_reward"
    """Name of the number."""

    def build(self, context: Context) -> MeanRewardMetric:
        """The metric, without images yet."""
        return MeanRewardMetric(self, context.make(self.reward))


class Seen(NamedTuple):
    """What is kept of a batch."""

    scores: PerSample


class MeanRewardMetric(Metric):
    """Keeps a sum."""

    compares_with = "nothing"
    seen_type = Seen
    formula = "mean-reward/1"

    def __init__(self, spec: MeanReward, reward: Reward) -> None:
        self.spec, self.reward = spec, reward
        self.reset()

    def reset(self) -> None:
        """Forget the generated images."""
        self._sum, self._n = 0.0, 0

    def look(self, img: Image, cond: Cond) -> Seen:
        """Scores of images [B C H W]."""
        with torch.no_grad():
            return Seen(rated(self.reward, img, cond).double().cpu())

    def add(self, seen: Seen) -> None:
        """Add the scores of a batch."""
        self._sum += float(seen.scores.sum())
        self._n += len(seen.scores)

    def update(self, img: Image, cond: Cond) -> None:
        """Add generated images [B C H W]."""
        self.add(self.look(img, cond))

    def result(self) -> dict[str, float]:
        """The mean. DataError without images."""
        if not self._n:
            raise DataError(f"{self.spec.name}: no images were given")
        return {self.spec.name: self._sum / self._n}

    def fingerprint(self) -> dict[str, str | int | float]:
        """The formula, the reward's settings and the weights of its networks."""
        return {"formula": self.formula, **identity(self.spec.reward, self.reward)}
