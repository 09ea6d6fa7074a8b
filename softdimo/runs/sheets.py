"""Sample sheets: the same conditions and the same noise at every look, so that only the weights differ."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import nn

from softdimo import strips
from softdimo.build import Components
from softdimo.kinds import Cond, Sampler, Teacher, Tokenizer
from softdimo.math.rollout import categorical, start
from softdimo.shapes import Image, Probs, Tokens

Averaged = Callable[[], AbstractContextManager[None]]
"""Inside it, the network in training has its averaged weights."""
COLUMNS, FEW = 10, 1
"""Of a sheet, and of a tiny run's, whose tokenizer may be as large as any."""
SEED = 20250917
"""Seed of the sheets' noise; not that of the run, whose streams they must not touch."""


class Sheets:
    """Writes `NNNNNNNN.png` sheets into a folder; rows depend on what is being trained.

    All ranks draw, as a network in pieces runs on all of them, and the `first` writes. A frozen teacher draws inside
    `autocast`, as in training.
    """

    def __init__(
        self,
        parts: Components,
        folder: Path,
        first: bool = True,
        columns: int = COLUMNS,
        autocast: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.parts, self.folder, self.first, self.columns, self.autocast = parts, folder, first, columns, autocast
        self._teacher: Image | None = None

    @torch.no_grad()
    def write(self, iteration: int, network: str, net: nn.Module, averaged: Averaged) -> Path:
        """One sheet of the network in training: live weights, and EMA inside `averaged`."""
        training = net.training
        net.eval()
        try:
            rows, heads = self._rows(network, net, averaged)
        finally:
            net.train(training)
        path = self.folder / f"{iteration:08d}.png"
        if self.first:
            strips.strip([(label, images.cpu()) for label, images in rows], path, heads)
        return path

    def _rows(self, network: str, net: nn.Module, averaged: Averaged) -> tuple[list[tuple[str, Image]], list[str]]:
        """Labels and images of the rows, and what stands above the columns."""
        if network == "tokenizer":
            index = torch.arange(min(self.columns, len(self.parts.data.source("held_out"))))
            real = self.parts.data.source("held_out").get(index).to(self.parts.device)
            assert real.images is not None
            tokenizer = cast(Tokenizer, net)
            with averaged():
                decoded = tokenizer.decode(tokenizer.encode(real.images), real.cond)
            return [("held out", real.images), ("decoded", decoded)], []
        heads = list(self._cond.prompts) or [self.parts.data.classes[i] for i in self._cond.labels.tolist()]
        if network == "teacher":
            with averaged():
                return [("teacher", self._sampled(cast(Teacher, net)))], heads
        return self._student(cast(Teacher, net), averaged), heads

    @cached_property
    def _cond(self) -> Cond:
        data = self.parts.data
        return data.ready(data.conditions(self.columns)).to(self.parts.device)

    def _rng(self) -> torch.Generator:
        return torch.Generator(self.parts.device).manual_seed(SEED)

    def _decoded(self, tokens: Tokens) -> Image:
        return self.parts.require_tokenizer().decode(tokens, self._cond)

    def _sampled(self, net: Teacher) -> Image:
        """Samples of a masked diffusion model by the recipe's `train.sampler`; one-step ones when it has none."""
        train = self.parts.recipe.train
        if train is None or train.sampler is None:
            return self._decoded(self._one_step(net)[0])
        sampler: Sampler = self.parts.make(train.sampler)
        return self._decoded(sampler.sample(net, self._cond, self._rng()))

    def _one_step(self, net: Teacher) -> tuple[Tokens, Probs]:
        """Tokens of one student pass, and the probabilities that they were drawn from."""
        rng = self._rng()
        logits = net(start(net, self._cond, self.parts.recipe.init, rng)[1], self._cond).logits.float()
        return categorical(logits, rng), logits.softmax(-1)

    def _student(self, net: Teacher, averaged: Averaged) -> list[tuple[str, Image]]:
        train = self.parts.recipe.train
        rows: list[tuple[str, Image]] = []
        if train is not None and train.sampler is not None:
            if self._teacher is None:
                with self.autocast():
                    self._teacher = self._sampled(self.parts.require_teacher())
            rows.append(("teacher", self._teacher))
        rows.append(("student", self._decoded(self._one_step(net)[0])))
        with averaged():
            tokens, probs = self._one_step(net)
        soft = self.parts.require_tokenizer().decode_soft(probs, self._cond)
        return [*rows, ("EMA", self._decoded(tokens)), ("EMA, soft", soft)]
