"""MaskBit for ImageNet: a bidirectional transformer on bit tokens (Weber et al. 2024, arXiv 2409.16211)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, Output, Teacher, TokenShape
from softdimo.math.precision import wide
from softdimo.shapes import Embedding, Mask, Probs, Tokens
from softdimo.spec import Fraction
from softdimo.weights import Published, Shapes, count
from softdimo_plugins.bits import expected, signs
from softdimo_plugins.layers import SelfAttention, full_precision, run_blocks
from softdimo_plugins.public import PublicTransformer

EPS = 1e-12
"""Of every layer norm."""


def sizes(shapes: Shapes) -> dict[str, int]:
    """Settings that the weights show; those of the tokenizer first."""
    bits, outputs = shapes["input_proj.weight"][1], shapes["prediction_layer.weight"][0]
    fitting = (g for g in range(1, bits + 1) if bits % g == 0 and g * 2 ** (bits // g) == outputs)
    return {
        "tokenizer.bits": bits,
        "tokenizer.groups": next(fitting),
        "width": shapes["pos_emb"][2],
        "depth": count(shapes, r"transformer\.layers\.(\d+)\."),
        "mlp": shapes["transformer.layers.0.1.net.0.weight"][0],
        "classes": shapes["class_emb.weight"][0] - 1,
        "tokens": shapes["pos_emb"][1] - 1,
        "pre_norm": "norm_after_transformer.weight" in shapes,
    }


class MaskBit(PublicTransformer):
    """Transformer whose input is the bits of the tokens themselves, 0 where masked: there is no embedding table.

    The G groups of bits of a token are masked and predicted independently.
    """

    published: ClassVar[Published] = Published(
        "MaskBit",
        sizes,
        renames=((r"^token_emb", "input_proj"), (r"\.mha\.in_proj_", ".mha.in_proj.")),
        beside=("bits_to_indices",),
    )
    public_heads: ClassVar[dict[tuple[int, int], int]] = {(1024, 24): 16}
    width: Annotated[int, Field(ge=8)] = 1024
    """Width D of the sequence."""
    depth: Annotated[int, Field(ge=1)] = 24
    """Transformer blocks."""
    heads: Annotated[int, Field(ge=1)] = 16
    """Attention heads; they divide the width. The weights do not show them."""
    mlp: Annotated[int, Field(ge=1)] = 4096
    """Hidden width of the feed-forward layers."""
    classes: Annotated[int, Field(ge=1)] = 1000
    """Classes that the network knows; those of the data are the first of them."""
    dropout: Fraction = 0.1
    """After the input and in both branches of a block, in training mode only."""
    pre_norm: bool = False
    """Layer norms before the branches of a block; the public weights have them after the sums."""

    def build(self, context: Context) -> MaskBitTeacher:
        """The network for the tokens of `context`, with fresh weights."""
        name, shape = self.use or "maskbit", context.tokens
        if shape is None:
            raise RecipeError(f"the teacher `{name}` needs a tokenizer; add a `tokenizer:` section")
        if shape.V < 2 or shape.V & (shape.V - 1):
            raise RecipeError(f"the teacher `{name}` needs tokens made of bits; the tokenizer gives {shape.V} classes")
        if len(context.classes) > self.classes:
            n = len(context.classes)
            raise RecipeError(f"the data has {n} classes, the teacher `{name}` {self.classes}; raise classes")
        if self.width % self.heads:
            raise RecipeError(f"heads: {self.heads} does not divide width: {self.width}")
        return MaskBitTeacher(self, shape)


class Branch(nn.Module):
    """norm(x + drop(fn(x))), or with norms first x + drop(fn(norm(x)))."""

    def __init__(self, spec: MaskBit) -> None:
        super().__init__()
        self.norm, self.drop, self.pre_norm = nn.LayerNorm(spec.width, EPS), nn.Dropout(spec.dropout), spec.pre_norm

    def fn(self, x: Embedding) -> Embedding:
        """What the branch computes."""
        raise NotImplementedError

    def forward(self, x: Embedding) -> Embedding:
        """The sum, normalized before or after."""
        if self.pre_norm:
            out: Tensor = x + self.drop(self.fn(self.norm(x)))
        else:
            out = self.norm(x + self.drop(self.fn(x)))
        return out


class Attention(Branch):
    """Every position looks at every position."""

    def __init__(self, spec: MaskBit) -> None:
        super().__init__(spec)
        self.mha = SelfAttention(spec.width, spec.heads, 0.0)

    def fn(self, x: Embedding) -> Embedding:
        """Multi-head attention."""
        out: Tensor = self.mha(x)
        return out


class FeedForward(Branch):
    """W_2 gelu(W_1 x)."""

    def __init__(self, spec: MaskBit) -> None:
        super().__init__(spec)
        self.net = nn.Sequential(nn.Linear(spec.width, spec.mlp), nn.GELU(), nn.Linear(spec.mlp, spec.width))

    def fn(self, x: Embedding) -> Embedding:
        """Of every position."""
        out: Tensor = self.net(x)
        return out


class Transformer(nn.Module):
    """The stack. `MaskBitTeacher.forward` runs it."""

    def __init__(self, spec: MaskBit) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(Attention(spec), FeedForward(spec)) for _ in range(spec.depth))


class MaskBitTeacher(Teacher):
    """The network of `MaskBit`. The embedding of a position is W b + a, where b are the signs of its bits."""

    codes: Tensor

    def __init__(self, spec: MaskBit, shape: TokenShape) -> None:
        super().__init__()
        self.shape, self.width, self.depth, self.classes = shape, spec.width, spec.depth, spec.classes
        D, bits = spec.width, shape.V.bit_length() - 1
        self.register_buffer("codes", signs(bits), persistent=False)
        self.input_proj = nn.Linear(shape.G * bits, D)
        self.class_emb = nn.Embedding(spec.classes + 1, D)  # the last is the unconditional branch
        self.pos_emb = nn.Parameter(torch.empty(1, shape.L + 1, D).normal_(std=0.02))  # the class token's is the last
        self.first_layer = nn.Sequential(nn.LayerNorm(D, EPS), nn.Dropout(spec.dropout))
        self.transformer = Transformer(spec)
        self.norm_after_transformer = nn.LayerNorm(D, EPS) if spec.pre_norm else nn.Identity()
        self.last_layer = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D, EPS))
        self.prediction_layer = nn.Linear(D, shape.G * shape.V)
        nn.init.normal_(self.class_emb.weight, std=0.02)

    def embed(self, tokens: Tokens) -> Embedding:
        """W b + a of ids in [0, V]; the bits of masked groups are 0."""
        return self._project(functional.pad(self.codes, (0, 0, 0, 1))[tokens].flatten(2))

    def soften(self, probs: Probs, mask: Mask | None = None) -> Embedding:
        """W E[b] + a, which is the expected embedding exactly; the bits of masked groups are 0."""
        return self._project(expected(self.codes, probs, mask))

    def _project(self, b: Float[Tensor, "B L bits"]) -> Embedding:
        with full_precision(b.device):
            out: Tensor = self.input_proj(b)
        return out

    def forward(self, e: Embedding, cond: Cond, at: Mask | None = None, features: Sequence[int] = ()) -> Output:
        """Logits in fp32 and the outputs of the blocks `features`, class token left out; see `Teacher.forward`."""
        L = self.shape.L
        headless = at is not None and not bool(at.any())
        label = self.class_emb(cond.labels % (self.classes + 1))[:, None]  # -1 is the last row
        x = self.first_layer(torch.cat([e, label.to(e.dtype)], 1) + self.pos_emb)
        x, seen = run_blocks(self.transformer.layers, x, features, headless)
        wanted = tuple(f[:, :L] for f in seen)
        if headless:
            return Output(torch.empty(0, self.shape.V, device=e.device), wanted)
        x = x[:, :L]
        if at is None:
            return Output(self.head(x), wanted)
        rows = at.any(-1)
        return Output(self.head(x[rows])[at[rows]], wanted)

    def head(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N G V"]:
        """Logits of every group from the last block's output."""
        z: Tensor = self.prediction_layer(self.last_layer(self.norm_after_transformer(x)))
        return wide(z).view(*z.shape[:-1], self.shape.G, self.shape.V)

    def table_rms(self) -> Tensor:
        """Root mean square of W b + a over all tokens, whose bits are independent: the table is never made."""
        W, a = wide(self.input_proj.weight), wide(self.input_proj.bias)
        return (W.square().sum(1) + a.square()).mean().sqrt()

    def frozen(self) -> tuple[str, ...]:
        """The projection of the bits, and the positions."""
        return "input_proj", "pos_emb"

    def layers(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        return tuple(self.transformer.layers)
