"""What flows between components: shapes of images and tokens, conditions, batches, logs, what a search has found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softdimo.shapes import Embedding, Image, Labels, PerSample, Tokens

Logs = dict[str, Tensor | float]
"""Scalars for the log; tensors are detached by the engine."""
NULL = "null."
"""Before the name of a tensor in `Cond.tensors`: the same of the unconditional (or negative) prompt."""
NULL_LABEL = -1
"""Label of the unconditional branch."""


class ImageShape(NamedTuple):
    """Channels, height, width of a data set's images."""

    C: int
    H: int
    W: int


class TokenShape(NamedTuple):
    """Sequence shape: L = rows * cols positions, G groups, V classes per group (the mask id is V)."""

    rows: int
    cols: int
    G: int
    V: int

    @property
    def L(self) -> int:
        """Number of token positions."""
        return self.rows * self.cols

    @property
    def units(self) -> int:
        """Maskable units L * G."""
        return self.L * self.G


@dataclass  # not frozen: Fabric rebuilds it field by field where it converts precisions
class Cond:
    """Conditions of a batch: class labels, or prompts with their encodings. Batch first everywhere.

    `tensors` holds what a text encoder makes of the prompts (states, pooled vectors), each [B ...], and the same of the
    unconditional prompt as `null.<name>`.
    """

    labels: Labels
    """[B]; -1 is the unconditional branch (and the label of prompts without a class)."""
    prompts: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Cond:
        """Apply `fn` to every tensor (moving to a device, for one)."""
        return replace(self, labels=fn(self.labels), tensors={k: fn(v) for k, v in self.tensors.items()})

    def to(self, device: torch.device | str) -> Cond:
        """The same conditions on `device`."""
        return self.map(lambda t: t.to(device))

    def __getitem__(self, index: Tensor | slice) -> Cond:
        out = self.map(lambda t: t[index])
        if not self.prompts:
            return out
        rows = (
            range(len(self.prompts))[index]
            if isinstance(index, slice)
            else torch.arange(len(self))[index.cpu()].tolist()
        )
        return replace(out, prompts=tuple(self.prompts[i] for i in rows))

    @staticmethod
    def cat(parts: Sequence[Cond]) -> Cond:
        """Concatenate along the batch."""
        return Cond(
            torch.cat([p.labels for p in parts]),
            tuple(s for p in parts for s in p.prompts),
            {k: torch.cat([p.tensors[k] for p in parts]) for k in parts[0].tensors},
        )

    def repeat(self, n: int) -> Cond:
        """Each condition n times in a row: [B] -> [B * n]."""
        out = self.map(lambda t: t.repeat_interleave(n, 0))
        return replace(out, prompts=tuple(s for s in self.prompts for _ in range(n)))


@dataclass(frozen=True)
class Batch:
    """Real data: images or tokens or both, with their conditions."""

    cond: Cond
    images: Image | None = None
    tokens: Tokens | None = None

    def __len__(self) -> int:
        return len(self.cond)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        images = None if self.images is None else self.images.to(device)
        tokens = None if self.tokens is None else self.tokens.to(device)
        return Batch(self.cond.to(device), images, tokens)


@dataclass(frozen=True)
class Found:
    """Result of a search over B conditions."""

    e: Embedding
    """The best input embedding of each condition."""
    score: PerSample
    """Its optimized score."""
    trace: Float[Tensor, "starts iterations B"]
    """Score of every evaluated point, iteration 0 first. A start that stops early stays where it is."""
    passes: float
    """Forward-equivalents per condition: a forward is 1, its backward 2."""
    screening: float = 0.0
    """The part of `passes` that was spent on choosing the starts of `trace`."""
    path: Float[Tensor, "iterations B L D"] | None = None
    """Embeddings that the winning start went through, iteration 0 first, where there are iterations; for pictures."""
    rewards: Mapping[str, Float[Tensor, "starts iterations B"]] = field(default_factory=dict)
    """`trace` of each reward by itself, where the score is made of several and names them (`math.best.named`)."""
    points: Int[Tensor, "starts B"] | None = None
    """Evaluated points of each start, where some stopped early."""
    spent: PerSample | None = None
    """Forward-equivalents of each condition, where they differ; `passes` is their mean."""
