"""The small masked transformer, conditioned on text: states of a text encoder stand before the image's tokens."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, Tokenizer, TokenShape
from softdimo.math.digest import seed_of
from softdimo.math.precision import wide
from softdimo_plugins.encodings import encoding
from softdimo_plugins.teachers.compact import STD, Compact, CompactTeacher


class CompactText(Compact):
    """`compact` with prompts: one sequence of text and image, in which all attend to all, as in Meissonic's blocks."""

    states: Annotated[int, Field(ge=1)] = 64
    """Width of the text encoder's states."""
    codes: bool = False
    """Training starts with the tokenizer's codes, projected at random, as the table: what looks alike starts alike.

    Images put together from few things (animals, colors) are learned sooner.
    """

    def build(self, context: Context) -> CompactTextTeacher:
        """The network for the tokens of `context`, with fresh weights."""
        return CompactTextTeacher(self, self.tokens(context), TextTokens(self.states, self.width))


class TextTokens(nn.Linear):
    """Each state of the text encoder as one token."""

    def forward(self, cond: Cond) -> Float[Tensor, "B T D"]:  # type: ignore[override]
        """Project `states` [B T states]. RecipeError where conditions have none, or others."""
        return super().forward(encoding(cond, "states", (None, self.in_features), "the teacher `compact_text`"))


class CompactTextTeacher(CompactTeacher):
    """The network of `CompactText`."""

    def __init__(self, spec: CompactText, shape: TokenShape, condition: TextTokens) -> None:
        super().__init__(spec, shape, condition)
        self.codes = spec.codes

    @torch.no_grad()
    def meet(self, tokenizer: Tokenizer) -> None:
        """With `codes`, make the table's visual rows of the tokenizer's codes; RecipeError where it has no table."""
        if not self.codes:
            return
        table = getattr(tokenizer, "table", None)
        if not callable(table):
            raise RecipeError("teacher.codes: this tokenizer has no table of codes; leave `codes` out")
        codes: Float[Tensor, "G V d"] = wide(table())
        rng = torch.Generator().manual_seed(seed_of("codes"))  # the same on every rank
        turn = torch.randn(codes.shape[-1], self.width, generator=rng).to(codes)
        turned = (codes - codes.mean(1, keepdim=True)) @ turn
        self.table[:, :-1] = turned * (STD / turned.square().mean().sqrt())
