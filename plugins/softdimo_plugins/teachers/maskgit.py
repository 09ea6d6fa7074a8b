"""MaskGIT for ImageNet, in the PyTorch reproduction whose weights are public (Besnier and Chen 2023, v1.0)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, Output, TokenShape
from softdimo.math.precision import wide
from softdimo.shapes import Embedding, Mask
from softdimo.spec import Fraction
from softdimo.weights import Published, Shapes, count
from softdimo_plugins.layers import SelfAttention, run_blocks
from softdimo_plugins.public import PublicTransformer, TableTeacher

EPS = 1e-12
"""Of the layer norms before and after the stack; those of the blocks have torch's own."""


def sizes(shapes: Shapes) -> dict[str, int]:
    """Settings that the weights show; the ids are V codes, the mask, the classes and the null class."""
    ids, width = shapes["tok_emb.weight"]
    return {
        "width": width,
        "depth": count(shapes, r"transformer\.layers\.(\d+)\."),
        "mlp": shapes["transformer.layers.0.1.fn.net.0.weight"][0],
        "codes + classes": ids - 2,
        "tokens": shapes["pos_emb"][1] - 1,
    }


class MaskGit(PublicTransformer):
    """Bidirectional transformer over the tokens and a class token; tokens and classes share a table, tied to the head.

    The public network has one more output than there are codes, for the mask id; here the mask is an input only, and
    the head leaves that output out unless `mask_class` is set.
    """

    published: ClassVar[Published] = Published(
        "MaskGit-PyTorch v1.0", sizes, under="model_state_dict", renames=((r"\.mha\.in_proj_", ".mha.in_proj."),)
    )
    public_heads: ClassVar[dict[tuple[int, int], int]] = {(768, 24): 16}
    width: Annotated[int, Field(ge=8)] = 768
    """Width D of the sequence."""
    depth: Annotated[int, Field(ge=1)] = 24
    """Transformer blocks."""
    heads: Annotated[int, Field(ge=1)] = 16
    """Attention heads; they divide the width. The weights do not show them."""
    mlp: Annotated[int, Field(ge=1)] = 3072
    """Hidden width of the feed-forward layers."""
    classes: Annotated[int, Field(ge=1)] = 1000
    """Classes that the network knows; those of the data are the first of them."""
    dropout: Fraction = 0.1
    """In attention and feed-forward layers, in training mode only."""
    mask_class: bool = False
    """The mask is a class too, as in the public code: V + 1 logits in the losses, and a one-step student can draw the
    mask, which tokenizers then read as the last code. Samplers of several steps never draw it."""

    def build(self, context: Context) -> MaskGitTeacher:
        """The network for the tokens of `context`, with fresh weights."""
        shape = one_group(self.use or "maskgit", context, self.classes)
        if self.width % self.heads:
            raise RecipeError(f"heads: {self.heads} does not divide width: {self.width}")
        return MaskGitTeacher(self, shape)


def one_group(name: str, context: Context, classes: int | None = None) -> TokenShape:
    """The tokens of `context`, one group of classes; RecipeError if there are none, more groups, or more labels.

    `classes`: how many labels the network knows, where it knows any.
    """
    shape = context.tokens
    if shape is None:
        raise RecipeError(f"the teacher `{name}` needs a tokenizer; add a `tokenizer:` section")
    if shape.G != 1:
        raise RecipeError(f"the teacher `{name}` has one class per token, but the tokenizer gives {shape.G} groups")
    if classes is not None and len(context.classes) > classes:
        raise RecipeError(f"the data has {len(context.classes)} classes, the teacher `{name}` {classes}; raise classes")
    return shape


class Attention(nn.Module):
    """The public weights' name of the attention."""

    def __init__(self, spec: MaskGit) -> None:
        super().__init__()
        self.mha = SelfAttention(spec.width, spec.heads, spec.dropout)

    def forward(self, x: Embedding) -> Embedding:
        """The attention."""
        out: Tensor = self.mha(x)
        return out


class FeedForward(nn.Module):
    """W_2 gelu(W_1 x), with dropout after both."""

    def __init__(self, spec: MaskGit) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(spec.width, spec.mlp),
            nn.GELU(),
            nn.Dropout(spec.dropout),
            nn.Linear(spec.mlp, spec.width),
            nn.Dropout(spec.dropout),
        )

    def forward(self, x: Embedding) -> Embedding:
        """Of every position."""
        out: Tensor = self.net(x)
        return out


class Residual(nn.Module):
    """x + fn(norm(x))."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(width), fn

    def forward(self, x: Embedding) -> Embedding:
        """One residual branch."""
        out: Tensor = x + self.fn(self.norm(x))
        return out


class Transformer(nn.Module):
    """The stack, each block an attention and a feed-forward branch. `MaskGitTeacher.forward` runs it."""

    def __init__(self, spec: MaskGit) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(Residual(spec.width, Attention(spec)), Residual(spec.width, FeedForward(spec)))
            for _ in range(spec.depth)
        )


class MaskGitTeacher(TableTeacher):
    """The network of `MaskGit`. Ids: codes 0 to V - 1, the mask V, then the classes and the null class."""

    def __init__(self, spec: MaskGit, shape: TokenShape) -> None:
        super().__init__()
        self.shape, self.width, self.depth, self.classes = shape, spec.width, spec.depth, spec.classes
        D, ids = spec.width, shape.V + spec.classes + 2
        self.outputs = shape.V + spec.mask_class
        """Logits per token."""
        self.pos_emb = nn.Parameter(torch.empty(1, shape.L + 1, D).normal_(std=0.02))  # the class token's is the last
        self.bias = nn.Parameter(torch.zeros(shape.L + 1, ids))
        self.tok_emb = nn.Embedding(ids, D)
        self.first_layer = nn.Sequential(
            nn.LayerNorm(D, EPS), nn.Dropout(spec.dropout), nn.Linear(D, D), nn.GELU(),
            nn.LayerNorm(D, EPS), nn.Dropout(spec.dropout), nn.Linear(D, D),
        )  # fmt: skip
        self.transformer = Transformer(spec)
        self.last_layer = nn.Sequential(
            nn.LayerNorm(D, EPS), nn.Dropout(spec.dropout), nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D, EPS)
        )
        nn.init.normal_(self.tok_emb.weight, std=0.02)

    def forward(self, e: Embedding, cond: Cond, at: Mask | None = None, features: Sequence[int] = ()) -> Output:
        """Logits in fp32 and the outputs of the blocks `features`, class token left out; see `Teacher.forward`."""
        L = self.shape.L
        headless = at is not None and not bool(at.any())
        label = self.shape.V + 1 + cond.labels % (self.classes + 1)  # -1 is the null class, the last id
        x = torch.cat([e, functional.embedding(label, self.tok_emb.weight)[:, None].to(e.dtype)], 1) + self.pos_emb
        x, seen = run_blocks(self.transformer.layers, self.first_layer(x), features, headless)
        wanted = tuple(f[:, :L] for f in seen)
        if headless:
            return Output(torch.empty(0, self.outputs, device=e.device), wanted)
        if at is None:
            return Output(self.head(x[:, :L], torch.arange(L, device=e.device))[:, :, None], wanted)
        sample, position, _ = at.nonzero(as_tuple=True)
        return Output(self.head(x[sample, position], position), wanted)

    def head(self, x: Float[Tensor, "*units D"], position: Int[Tensor, "units"]) -> Float[Tensor, "*units V"]:
        """Logits from the last block's output at these positions: one bias per position and id."""
        h = self.last_layer(x)
        return wide(h @ self.tok_emb.weight[: self.outputs].T) + wide(self.bias[position, : self.outputs])

    def frozen(self) -> tuple[str, ...]:
        """The table (and with it the tied head), positions and output bias, as in the public Di[M]O code."""
        return "tok_emb", "pos_emb", "bias"

    def layers(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        return tuple(self.transformer.layers)
