"""Pixels as tokens, for images so small that nothing needs to be learned to encode them."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, ImageShape, Tokenizer, TokenShape
from softdimo.shapes import Image, Probs, Tokens
from softdimo.spec import NetworkSpec


class Gray(NetworkSpec):
    """A token is a pixel, its class the nearest of V gray levels from black to white. Nothing is learned."""

    levels: Annotated[int, Field(ge=2, le=256)] = 2
    """Gray levels V."""

    def ready(self) -> bool:
        """It has no weights."""
        return True

    def token_shape(self, image: ImageShape) -> TokenShape:
        """One token per pixel; RecipeError for images in color."""
        if image.C != 1:
            raise RecipeError(f"{self.use or 'gray'} takes images of 1 channel, the data has {image.C}")
        return TokenShape(image.H, image.W, 1, self.levels)

    def build(self, context: Context) -> GrayTokenizer:
        """The tokenizer for the images of `context`."""
        return GrayTokenizer(self.token_shape(context.image))


class GrayTokenizer(Tokenizer):
    """Class v is the gray level v / (V - 1)."""

    def __init__(self, shape: TokenShape) -> None:
        super().__init__()
        self.shape = shape

    def encode(self, img: Image) -> Tokens:
        """The nearest level of each pixel."""
        return (img * (self.shape.V - 1)).round().long().clamp(0, self.shape.V - 1).flatten(1)[..., None]

    def decode_soft(self, probs: Probs, cond: Cond | None = None) -> Image:
        """The expected level of each pixel."""
        return self._image(probs @ torch.linspace(0, 1, self.shape.V, dtype=probs.dtype, device=probs.device))

    def decode(self, tokens: Tokens, cond: Cond | None = None) -> Image:
        """The level of each pixel."""
        return self._image(tokens / (self.shape.V - 1))

    def _image(self, levels: Tensor) -> Image:
        return levels.view(-1, 1, self.shape.rows, self.shape.cols)
