"""Is the image what its caption says? The judge of `caption_accuracy`, as a reward."""

from __future__ import annotations

from typing import Annotated, ClassVar

from softdimo.kinds import Cond, Context, Features
from softdimo.shapes import Image, PerSample
from softdimo.spec import NetworkSpec, Spec, component
from softdimo_plugins.captions.judge import Judge


class CaptionCorrect(Spec):
    """1 for an image that shows what its caption says and nothing else, 0 for others. Not differentiable."""

    judge: Annotated[NetworkSpec, component("features")]
    """Classifier of single animals, with its weights."""

    def build(self, context: Context) -> CaptionCorrectReward:
        """The reward."""
        network: Features = context.make(self.judge)
        return CaptionCorrectReward(Judge(network.eval(), context.classes))


class CaptionCorrectReward:
    """The reward of `CaptionCorrect`."""

    differentiable: ClassVar[bool] = False

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def __call__(self, img: Image, cond: Cond) -> PerSample:
        """One score per image. DataError where there are no captions."""
        return self.judge(img.detach(), cond).to(img.dtype)
