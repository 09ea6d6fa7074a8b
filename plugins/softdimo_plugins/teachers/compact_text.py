"""The small masked transformer, conditioned on text: states of a text encoder stand before the image's tokens."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context
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

    def forward(self, cond: Cond) -> Float[Tensor, "B T D"]:
        """Project `states`. RecipeError where conditions have none, or others."""
        states = cond.tensors.get("states")
        if states is None:
            raise RecipeError("compact_text is conditioned on prompts: use data with captions, and a `text_encoder:`")
        if states.shape[-1] != self.in_features:
            raise RecipeError(
                f"teacher.states is {self.in_features}, but the text encoder's states are {states.shape[-1]} wide; make them equal"
            )
        return super().forward(states)
