"""A discriminator on the features of a frozen, separately trained network on images (projected features)."""

from __future__ import annotations

from typing import Annotated, ClassVar, cast

import torch
from torch import Tensor, nn

from softdimo.kinds import Cond, Context, Discriminator, Features
from softdimo.shapes import Image, PerSample
from softdimo.spec import NetworkSpec, component


class Projected(NetworkSpec):
    """A small network on image features that somebody else has learned (Sauer et al. 2021), conditioned by projection.

    The features must not be those that the evaluation measures with; an evaluation refuses that.
    """

    space: ClassVar[str] = "pixels"
    features: Annotated[NetworkSpec, component("features")]
    """The frozen network."""
    hidden: int = 128
    """Width of the two hidden layers."""

    def build(self, context: Context) -> ProjectedHead:
        """The head around the frozen network."""
        return ProjectedHead(context.make(self.features), len(context.classes), self.hidden)


class ProjectedHead(Discriminator):
    """[B C H W] in [0, 1] -> [B 1]; the frozen network is held, not registered."""

    space = Projected.space

    def __init__(self, features: Features, classes: int, hidden: int) -> None:
        super().__init__()
        self._frozen = (features,)
        self.null = classes
        self.body = nn.Sequential(
            nn.LayerNorm(features.width),
            nn.Linear(features.width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
        )
        self.score = nn.Linear(hidden, 1)
        self.classes = nn.Embedding(classes + 1, hidden)
        nn.init.zeros_(self.classes.weight)

    def forward(self, x: Image, ratio: PerSample, cond: Cond) -> Tensor:
        """One score per image; the ratio is not used."""
        h = self.body(self._frozen[0](x)[0].float())
        row = self.classes(torch.where(cond.labels < 0, self.null, cond.labels))
        return cast(Tensor, self.score(h) + (h * row).sum(-1, keepdim=True))
