"""How likely a network finds a caption, given an image."""

from __future__ import annotations

from typing import Annotated, ClassVar, Protocol, cast

from softdimo.errors import PluginError
from softdimo.kinds import Cond, Context, Features
from softdimo.shapes import Image, PerSample
from softdimo.spec import NetworkSpec, Spec, component


class Scoring(Protocol):
    """A network on images that compares them with captions too."""

    def score(self, img: Image, cond: Cond) -> PerSample:
        """log p(caption | image) of each image."""
        ...


class CaptionScore(Spec):
    """log p(caption | image), at most 0, of a network trained on real images. Differentiable.

    The network should not be one that the evaluation measures with, or the generator grades itself.
    """

    network: Annotated[NetworkSpec, component("features")]
    """The network, with its weights: `captioner`, or another with a method `score(img, cond)` [B]."""

    def build(self, context: Context) -> CaptionScoreReward:
        """The reward, its network frozen and in evaluation mode. PluginError for networks that know no captions."""
        network: Features = context.make(self.network)
        if not callable(getattr(network, "score", None)):
            raise PluginError(f"caption_score: the network `{self.network.use}` has no `score`; use `captioner`")
        return CaptionScoreReward(network.eval().requires_grad_(False))


class CaptionScoreReward:
    """The reward of `CaptionScore`."""

    differentiable: ClassVar[bool] = True

    def __init__(self, network: Features) -> None:
        self.network = network

    def __call__(self, img: Image, cond: Cond) -> PerSample:
        """One score per image. The network's DataError where there are no captions."""
        return cast(Scoring, self.network).score(img, cond)
