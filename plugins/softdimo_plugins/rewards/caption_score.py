"""How likely a network finds a caption, given an image."""

from __future__ import annotations

from typing import Annotated, ClassVar, Protocol, cast

import torch

from softdimo.errors import PluginError
from softdimo.kinds import Cond, Context, Features
from softdimo.shapes import Image, PerSample
from softdimo.spec import NetworkSpec, Spec, component

NEAREST = 2.0**-23
"""The spacing of single precision at 1: a smaller -log p is rounding."""


class Scoring(Protocol):
    """A network on images that compares them with captions too."""

    def score(self, img: Image, cond: Cond) -> PerSample:
        """log p(caption | image) of each image."""
        ...


class CaptionScore(Spec):
    """log p(caption | image), at most 0, of a network trained on real images, or its log-odds. Differentiable.

    The network should not be one that the evaluation measures with, or the generator grades itself.
    """

    network: Annotated[NetworkSpec, component("features")]
    """The network, with its weights: `captioner`, or another with a method `score(img, cond)` [B]."""

    odds: bool = False
    """log p - log(1 - p) in place of log p: of images that show their caption it still tells the better ones apart,
    where log p is about 0 for all. At most 15.9, that of p = 1 - 2^-23: what is nearer to 1 is rounding."""

    def build(self, context: Context) -> CaptionScoreReward:
        """The reward, its network frozen and in evaluation mode. PluginError for networks that know no captions."""
        network: Features = context.make(self.network)
        if not callable(getattr(network, "score", None)):
            raise PluginError(f"caption_score: the network `{self.network.use}` has no `score`; use `captioner`")
        return CaptionScoreReward(network.eval().requires_grad_(False), self.odds)


class CaptionScoreReward:
    """The reward of `CaptionScore`."""

    differentiable: ClassVar[bool] = True

    def __init__(self, network: Features, odds: bool = False) -> None:
        self.network, self.odds = network, odds

    def __call__(self, img: Image, cond: Cond) -> PerSample:
        """One score per image. The network's DataError where there are no captions."""
        log_p = cast(Scoring, self.network).score(img, cond)
        if not self.odds:
            return log_p
        log_p = log_p.clamp(max=-NEAREST)
        return log_p - torch.log(-torch.expm1(log_p))
