"""Networks whose weights others published: what their settings and their tables share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import WeightsError
from softdimo.kinds import Teacher
from softdimo.math.precision import wide
from softdimo.shapes import Embedding, Mask, Probs, Tokens
from softdimo.spec import NetworkSpec, RecipeRef, Weights
from softdimo.weights import Published, load_published, made_here
from softdimo_plugins.layers import soft_rows


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
        load_published(module, path, self.layout())

    def layout(self) -> Published:
        """How the public files of a network with these settings are written."""
        return self.published

    def smoke(self) -> Self:
        """Random weights instead of a file's; the structure is the real one."""
        return self.model_copy(update=self.without_public_weights())

    def without_public_weights(self) -> dict[str, Weights | bool | None]:
        """For a tiny version: random weights, so that no file has to be fetched or to fit; a recipe's stay."""
        return {} if self.weights is None or isinstance(self.weights, RecipeRef) else {"weights": None, "fresh": True}


class PublicTransformer(PublicSpec):
    """A published transformer. Its weights do not show the number of heads: another one loads, and means nothing."""

    public_heads: ClassVar[Mapping[tuple[int, int], int]]
    """(width, depth) -> heads of the public weights."""
    width: int
    depth: int
    heads: int

    def smoke(self) -> Self:
        """Two blocks, with random weights instead of a file's; all else keeps its size."""
        return super().smoke().model_copy(update={"depth": min(2, self.depth)})

    def told_heads(self, path: Path) -> int:
        """The heads that are known of the weights at `path`; those of the recipe where nothing is known."""
        return self.public_heads.get((self.width, self.depth), self.heads)

    def load_weights(self, module: nn.Module, path: Path) -> None:
        """As above; WeightsError also where weights of a public size, not made here, meet another number of heads."""
        same_heads(self.published.model, "heads", (self.width, self.depth), self.heads, self.told_heads(path), path)
        super().load_weights(module, path)


class PublicPyramid(PublicSpec):
    """A published autoencoder of convolutions at several resolutions."""

    blocks: int

    def smoke(self) -> Self:
        """One residual block at each resolution, with random weights instead of a file's; all else keeps its size."""
        return super().smoke().model_copy(update={"blocks": 1})


def same_heads(model: str, setting: str, size: tuple[int, int], ours: int, theirs: int, path: Path) -> None:
    """WeightsError where the recipe's `setting` differs from the heads of a file that was not made here."""
    if theirs != ours and not made_here(path):
        raise WeightsError(
            f"{path}: {model} of width {size[0]} and depth {size[1]} has {theirs} heads, which its weights do not "
            f"show; the recipe says {setting}: {ours}. Change it to {setting}: {theirs}"
        )


class TableTeacher(Teacher):
    """A network of one group of codes with one table, `tok_emb`: rows 0 to V - 1 are the codes, row V is the mask."""

    tok_emb: nn.Embedding

    def embed(self, tokens: Tokens) -> Embedding:
        """Table rows of ids in [0, V]."""
        return functional.embedding(tokens[..., 0], self.tok_emb.weight)

    def soften(self, probs: Probs, mask: Mask | None = None) -> Embedding:
        """E^T p; the mask's row where masked. A last column beyond the codes is the mask's own probability."""
        at = None if mask is None else mask[:, :, 0]
        return soft_rows(self.tok_emb.weight, probs[:, :, 0], at, self.shape.V)

    def table_rms(self) -> Tensor:
        """Root mean square over the codes' rows."""
        return wide(self.tok_emb.weight[: self.shape.V]).square().mean().sqrt()
