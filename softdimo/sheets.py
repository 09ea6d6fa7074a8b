"""Sample sheets: the same conditions and the same noise at every look, so that only the weights differ."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn

from softdimo import strips
from softdimo.build import Components
from softdimo.kinds import Sampler, Teacher, Tokenizer
from softdimo.math.rollout import categorical, start
from softdimo.shapes import Image

SEED = 20250917
"""Seed of the sheets' noise; not that of the run, whose streams they must not touch."""


class Sheets:
    """Writes `NNNNNNNN.png` sheets into a folder; rows depend on what is being trained."""

    def __init__(self, parts: Components, folder: Path, columns: int = 10) -> None:
        self.parts, self.folder, self.columns = parts, folder, columns
        self._teacher: Image | None = None

    @torch.inference_mode()
    def write(self, iteration: int, network: str, live: nn.Module, ema: nn.Module) -> Path:
        """One sheet of the network in training: live weights and EMA."""
        rows: list[tuple[str, Image]]
        if network == "tokenizer":
            index = torch.arange(min(self.columns, len(self.parts.data.source("held_out"))))
            real = self.parts.data.source("held_out").get(index).to(self.parts.device)
            assert real.images is not None
            tokenizer = cast(Tokenizer, ema)
            rows = [("held out", real.images), ("decoded", tokenizer.decode(tokenizer.encode(real.images), real.cond))]
            heads: list[str] = []
        else:
            cond = self.parts.data.conditions(self.columns).to(self.parts.device)
            heads = [self.parts.data.classes[i] for i in cond.labels.tolist()]
            if network == "teacher":
                rows = [("teacher", self._sampled(cast(Teacher, ema)))]
            else:
                rows = self._student(cast(Teacher, live), cast(Teacher, ema))
        rows = [(label, images.cpu()) for label, images in rows]
        path = self.folder / f"{iteration:08d}.png"
        strips.strip(rows, path, heads)
        return path

    def _rng(self) -> torch.Generator:
        return torch.Generator(self.parts.device).manual_seed(SEED)

    def _sampled(self, net: Teacher) -> Image:
        """Samples of a masked diffusion model by the recipe's `train.sampler`; one-step ones when it has none."""
        tokenizer = self.parts.require_tokenizer()
        cond = self.parts.data.conditions(self.columns).to(self.parts.device)
        train = self.parts.recipe.train
        if train is None or train.sampler is None:
            return self._one_step(net)[0]
        sampler: Sampler = self.parts.make(train.sampler)
        return tokenizer.decode(sampler.sample(net, cond, self._rng()), cond)

    def _one_step(self, net: Teacher) -> tuple[Image, Image]:
        """Hard and soft decode of one student pass."""
        tokenizer = self.parts.require_tokenizer()
        cond, rng = self.parts.data.conditions(self.columns).to(self.parts.device), self._rng()
        logits = net(start(net, cond, self.parts.recipe.init, rng)[1], cond).logits.float()
        return tokenizer.decode(categorical(logits, rng), cond), tokenizer.decode_soft(logits.softmax(-1), cond)

    def _student(self, live: Teacher, ema: Teacher) -> list[tuple[str, Image]]:
        train = self.parts.recipe.train
        rows: list[tuple[str, Image]] = []
        if train is not None and train.sampler is not None:
            if self._teacher is None:
                self._teacher = self._sampled(self.parts.require_teacher())
            rows.append(("teacher", self._teacher))
        hard, soft = self._one_step(ema)
        return [*rows, ("student", self._one_step(live.eval())[0]), ("EMA", hard), ("EMA, soft", soft)]
