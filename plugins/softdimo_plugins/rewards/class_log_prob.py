"""How sure a classifier is of the wanted class."""

from __future__ import annotations

from typing import Annotated, ClassVar

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, Features
from softdimo.shapes import Image, PerSample
from softdimo.spec import NetworkSpec, Spec, component


class ClassLogProb(Spec):
    """log p(label | image) under a classifier. Differentiable.

    The classifier should be neither the metrics' feature network nor their judge, or the generator grades itself.
    """

    classifier: Annotated[NetworkSpec, component("features")]
    """The classifier, with its weights."""

    def build(self, context: Context) -> ClassLogProbReward:
        """The reward, its classifier frozen and in evaluation mode."""
        network: Features = context.make(self.classifier)
        return ClassLogProbReward(network.eval().requires_grad_(False))


class ClassLogProbReward:
    """The reward of `ClassLogProb`."""

    differentiable: ClassVar[bool] = True

    def __init__(self, network: Features) -> None:
        self.network = network

    def __call__(self, img: Image, cond: Cond) -> PerSample:
        """log p(label | img), at most 0. Labels of -1 have no probability: RecipeError."""
        if bool((cond.labels < 0).any()):
            raise RecipeError("class_log_prob needs a class label for each image; these conditions have none")
        scores: PerSample = self.network(img)[1].log_softmax(-1).gather(1, cond.labels[:, None])[:, 0]
        return scores
