"""Activation checkpointing: in a backward pass, compute what is inside the layers anew instead of keeping it."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from softdimo.errors import RecipeError
from softdimo.kinds import Teacher


def recompute(net: nn.Module) -> None:
    """Make every layer of the network keep its inputs alone for the backward pass; copies of the network inherit it.

    Random numbers are drawn again as they were, names of parameters stay, and passes without gradient are as before.
    RecipeError where the network names no layers.
    """
    layers = net.layers() if isinstance(net, Teacher) else ()
    if not layers:
        raise RecipeError(
            f"hardware.activation_checkpointing: recomputes layer by layer, and {type(net).__name__} names no layers; "
            "set it to false"
        )
    for layer in layers:
        layer.forward = MethodType(_recomputed, layer)  # a method, so that a copied layer's is bound to the copy


def _recomputed(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The layer's own forward, under a checkpoint."""
    return checkpoint(type(layer).forward, layer, *args, use_reentrant=False, **kwargs)
