"""Networks whose weights others published: what their settings share."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import nn

from softdimo.spec import NetworkSpec, RecipeRef, Weights
from softdimo.weights import Published, load_published


class PublicSpec(NetworkSpec):
    """Settings of a published network; their defaults are those of its public weights."""

    published: ClassVar[Published]
    fresh: bool = False
    """Run with random weights where none are named: for timing and trials, never for results."""

    def ready(self) -> bool:
        """Whether weights are named, or none are wanted."""
        return self.fresh or super().ready()

    def load_weights(self, module: nn.Module, path: Path) -> None:
        """Load a public file (.pth, .ckpt, .bin, .safetensors) or one of our own, strictly."""
        load_published(module, path, self.published)

    def without_public_weights(self) -> dict[str, Weights | bool | None]:
        """For a tiny version: random weights instead of those of a file, whose sizes are others; a recipe stays."""
        return {} if self.weights is None or isinstance(self.weights, RecipeRef) else {"weights": None, "fresh": True}
