"""The small masked transformer, conditioned on text: states of a text encoder stand before the image's tokens."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from softdimo.kinds import Cond, Context
from softdimo_plugins.encodings import encoding
from softdimo_plugins.teachers.compact import Compact, CompactTeacher


class CompactText(Compact):
    """`compact` with prompts: one sequence of text and image, in which all attend to all, as in Meissonic's blocks."""

    states: Annotated[int, Field(ge=1)] = 64
    """Width of the text encoder's states."""

    def build(self, context: Context) -> CompactTeacher:
        """The network for the tokens of `context`, with fresh weights."""
        return CompactTeacher(self, self.tokens(context), TextTokens(self.states, self.width))


class TextTokens(nn.Linear):
    """Each state of the text encoder as one token."""

    def forward(self, cond: Cond) -> Float[Tensor, "B T D"]:  # type: ignore[override]
        """Project `states` [B T states]. RecipeError where conditions have none, or others."""
        return super().forward(encoding(cond, "states", (None, self.in_features), "the teacher `compact_text`"))
