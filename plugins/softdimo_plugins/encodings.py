"""Encodings of prompts, as networks read them from the conditions of a batch."""

from __future__ import annotations

from torch import Tensor

from softdimo.errors import RecipeError
from softdimo.kinds import Cond


def encoding(cond: Cond | None, name: str, shape: tuple[int | None, ...], reader: str) -> Tensor:
    """`cond.tensors[name]`, [B *shape], where None is any size; `reader` (as "the teacher `x`") is for messages.

    Raises RecipeError where the conditions have none, or one of another shape.
    """
    tensor = None if cond is None else cond.tensors.get(name)
    if tensor is None:
        raise RecipeError(
            f"{reader} reads `{name}`, an encoding of the prompts, and the conditions have none: the recipe needs data "
            "with prompts and a `text_encoder:` section whose encoder gives it"
        )
    fits = tensor.ndim == len(shape) + 1 and all(
        want in (None, n) for want, n in zip(shape, tensor.shape[1:], strict=True)
    )
    if not fits:
        wanted = " ".join("any" if n is None else str(n) for n in shape)
        raise RecipeError(
            f"{reader} takes `{name}` of shape [B {wanted}], and the text encoder gives {list(tensor.shape)}; use the "
            "text encoder that it was trained with"
        )
    return tensor
