"""Components with a few settings of every sort, installed under `toy_*` names for the tests of recipes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from softdimo.registry import KINDS
from softdimo.spec import LocalPath, LossSpec, NetworkSpec, Player, Spec, Weights, component


class Data(Spec):
    """Toy data."""

    folder: LocalPath | None = None
    """A folder."""
    size: int = 8
    """Height and width."""


class Tokenizer(NetworkSpec):
    """Toy tokenizer."""

    patch: int = 4
    """Height and width of a patch."""


class Teacher(NetworkSpec):
    """Toy teacher."""

    width: int = 8
    """Width D."""
    heads: int = 2
    """Heads."""
    notes: dict[str, Any] = Field(default_factory=dict)
    """Anything."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    def smoke(self) -> Self:
        return self.model_copy(update={"width": self.heads})


class Features(NetworkSpec):
    """Toy features."""


class Discriminator(NetworkSpec):
    """Toy discriminator."""

    blocks: tuple[int, ...] = (0,)
    """Blocks."""


class TextEncoder(NetworkSpec):
    """Toy text encoder."""


class Loss(LossSpec):
    """Toy loss."""

    player: Player = Player(every=3, accumulate=4)
    """Player."""
    mode: Literal["soft", "hard"] = "soft"
    """Mode."""
    discriminator: Annotated[NetworkSpec, component("discriminator")] | None = None
    """Nested component."""
    rewards: tuple[Annotated[Spec, component("reward")], ...] = ()
    """Nested list."""


class NotALoss(Spec):
    """A loss that forgot to subclass LossSpec."""


class Reward(Spec):
    """Toy reward."""

    judge: Weights | None = None
    """Weights of a judge."""

    @model_validator(mode="after")
    def _no_bad(self) -> Self:
        if self.judge == "hf://bad/bad/bad":
            raise RuntimeError("a bug of the plugin")
        return self


class Sampler(Spec):
    """Toy sampler."""

    steps: int = 4
    """Steps."""

    def smoke(self) -> Self:
        return self.model_copy(update={"steps": 1})


class Search(Spec):
    """Toy search."""


class Metric(Spec):
    """Toy metric."""

    features: Annotated[NetworkSpec, component("features")] | None = None
    """Features."""


ENTRIES = {f"softdimo.{kind}": {f"toy_{kind}": f"tests.recipe.toy:{kind.title().replace('_', '')}"} for kind in KINDS}
ENTRIES["softdimo.loss"]["toy_broken"] = "tests.recipe.toy:NotALoss"

STUDENT = """\
title: Toy
data: {use: toy_data}
tokenizer: {use: toy_tokenizer}
teacher:
  use: toy_teacher
  width: 8
train:
  iterations: 10
  batch_size: 4
  terms:
    - use: toy_loss
      name: first
    - use: toy_loss
      name: second
      weight: {ratio: 0.5, of: first}
      discriminator: {use: toy_discriminator}
eval:
  samples: 100
  seeds: [0, 1, 2]
  metrics:
    - use: toy_metric
  rows:
    - {name: real, of: real}
    - {name: teacher, of: teacher, sampler: {use: toy_sampler}}
    - {name: student, of: student, decode: soft, sampler: {use: toy_sampler}}
search:
  conditions: 8
  score: {use: toy_reward}
  held_out:
    - {name: other, reward: {use: toy_reward}}
  methods:
    - {name: plain, search: {use: toy_search}}
"""
"""A valid recipe with every section, 32 lines."""
