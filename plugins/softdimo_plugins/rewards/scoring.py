"""What rewards by published networks share: frozen weights, prompts that are read once, memory that is bounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from softdimo.errors import PluginError, RecipeError, WeightsError
from softdimo.kinds import Cond
from softdimo.math.precision import wide
from softdimo.shapes import Image, PerSample
from softdimo_plugins.layers import full_precision
from softdimo_plugins.public import PublicSpec

TOGETHER = 16
"""Prompts that a text tower reads at a time, always: the last bits of its sums depend on the size of a batch."""
REMEMBERED = 4096
"""Prompts whose encodings are kept."""


class RewardSpec(PublicSpec):
    """Settings of a reward by a published network."""

    tiny: bool = False
    """Two narrow layers in place of those of the published network: for trials, never for results."""
    at_once: Annotated[int, Field(ge=1)] | None = None
    """Score so many images at a time, and compute each group anew in the backward pass, which bounds memory by one
    group and costs one more forward pass; null scores the batch in one piece."""

    def smoke(self) -> Self:
        """Tiny, with random weights."""
        return self.model_copy(update={"tiny": True, "fresh": True, "weights": None})

    def require_weights(self, what: str, address: str) -> None:
        """WeightsError where no weights are named, saying which there are."""
        if not self.ready():
            raise WeightsError(
                f"{what} has no weights; its public ones are `weights: {address}` (that, or the path of a copy). "
                "`fresh: true` takes random ones, for trials only"
            )


class Scorer(nn.Module, ABC):
    """A reward that is a network: frozen, in evaluation mode; a module, so that weights are loaded into it."""

    differentiable: ClassVar[bool] = True

    def __init__(self, at_once: int | None = None) -> None:
        super().__init__()
        self.at_once = at_once

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def frozen(self) -> Self:
        """Without gradients to its weights; call it last in building."""
        return self.requires_grad_(False).eval()

    def forward(self, img: Image, cond: Cond) -> PerSample:
        """One score per image [B 3 H W] in [0, 1], in fp32 (or fp64)."""
        given = (wide(img), *self.read(cond, len(img)))
        if self.at_once is None or len(img) <= self.at_once:
            return wide(self.score(*given))
        groups = zip(*(torch.split(x, self.at_once) for x in given), strict=True)
        scores = [checkpoint(self.score, *group, use_reentrant=False, preserve_rng_state=False) for group in groups]
        return wide(torch.cat(scores))

    @abstractmethod
    def read(self, cond: Cond, n: int) -> tuple[Tensor, ...]:
        """What `score` needs of the conditions of `n` images, each [n ...], without gradient."""

    @abstractmethod
    def score(self, img: Image, *given: Tensor) -> PerSample:
        """Scores of some images, each with its own row of what was read."""


class Reader:
    """Prompt -> one row of a tensor, kept for the prompts that were asked for last.

    A prompt's row is the same to the last bit whatever else is asked for, so that a resumed run, whose memory is
    empty, goes on as it would have.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Tensor], remembered: int = REMEMBERED) -> None:
        self.encode, self.remembered = encode, remembered
        self._rows: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """[B ...], without gradient; encodings are computed in full precision."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._rows]
        for i in range(0, len(new), TOGETHER):
            some = new[i : i + TOGETHER]
            # a search may run without gradients for good (inference mode); what is kept must serve training too
            with torch.inference_mode(False), torch.no_grad(), full_precision(device):
                rows = self.encode([*some, *[some[-1]] * (TOGETHER - len(some))])
            self._rows |= {prompt: row.clone() for prompt, row in zip(some, rows, strict=False)}
        for prompt in prompts:
            self._rows.move_to_end(prompt)
        out = torch.stack([self._rows[prompt] for prompt in prompts])
        while len(self._rows) > self.remembered:
            self._rows.popitem(last=False)
        return out


class Head(nn.Module):
    """Linear layers, with nothing but dropout between them in training: [B D] -> [B 1]."""

    def __init__(self, width: int, hidden: Sequence[int] = (1024, 128, 64, 16)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, n in enumerate(hidden):
            layers.append(nn.Linear(width, n))
            if i < 3:
                layers.append(nn.Dropout(0.2 if i < 2 else 0.1))
            width = n
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """One number per row."""
        out: Tensor = self.layers(x)
        return out


def prompts_of(cond: Cond, n: int, name: str) -> tuple[str, ...]:
    """The prompts of `n` images. RecipeError where there are none."""
    if len(cond.prompts) != n:
        what = "have none" if not cond.prompts else f"have {len(cond.prompts)} for {n} images"
        raise RecipeError(
            f"the reward `{name}` compares images with prompts, and these conditions {what}; use data with prompts"
        )
    return cond.prompts


def missing_extra(name: str, error: ImportError) -> PluginError:
    """A library of the extra is not installed."""
    return PluginError(f"the reward `{name}` needs more packages ({error}): run `pip install 'softdimo[rewards]'`")
