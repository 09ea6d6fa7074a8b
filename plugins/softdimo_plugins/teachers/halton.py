"""The newer MaskGIT for ImageNet of Halton-MaskGIT (Besnier et al. 2025): the class enters through modulation only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, Output, TokenShape
from softdimo.math.precision import wide
from softdimo.shapes import Embedding, Mask
from softdimo.spec import Fraction
from softdimo.weights import Published, Shapes, count
from softdimo_plugins.layers import attend, run_blocks
from softdimo_plugins.public import PublicTransformer, TableTeacher
from softdimo_plugins.teachers.maskgit import one_group

EPS = 1e-5
"""Of every norm."""
ClassVector = Float[Tensor, "B D"]


def gated_width(mlp: int) -> int:
    """Hidden width of a gated feed-forward layer as costly as a plain one of width `mlp`: 2/3 of it, up to 256s."""
    return 256 * -(-(2 * mlp // 3) // 256)


def sizes(shapes: Shapes) -> dict[str, int]:
    """Settings that the weights show."""
    codes, width = shapes["tok_emb.weight"]
    return {
        "width": width,
        "depth": count(shapes, r"transformer\.layers\.(\d+)\."),
        "heads * (width // heads)": shapes["transformer.layers.0.attn.wq.weight"][0],
        "hidden": shapes["transformer.layers.0.ff.w1.weight"][0],
        "classes": shapes["cls_emb.weight"][0] - 1,
        "registers": shapes.get("reg_tokens.weight", (0,))[0],
        "tokens": shapes["pos_emb.weight"][0],
        "tokenizer.codebook": codes - 1,
    }


class Halton(PublicTransformer):
    """Transformer with modulation by the class, gated feed-forward layers, normalized queries and keys.

    The defaults are those of the public size `base`. Others, as width, depth, heads: tiny 384, 6, 6; small 512, 12, 6;
    large 1024, 24, 16. The mask is an input only: the public network's output for it is left out.
    """

    published: ClassVar[Published] = Published(
        "Halton-MaskGIT", sizes, under="model_state_dict", tied=(("head.weight", "tok_emb.weight"),)
    )
    public_heads: ClassVar[dict[tuple[int, int], int]] = {(384, 6): 6, (512, 12): 6, (768, 12): 12, (1024, 24): 16}
    width: Annotated[int, Field(ge=8)] = 768
    """Width D of the sequence."""
    depth: Annotated[int, Field(ge=1)] = 12
    """Transformer blocks."""
    heads: Annotated[int, Field(ge=1)] = 12
    """Attention heads, each of width // heads. The weights do not show them."""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """Hidden width of the gated feed-forward layers; when null, that of the public networks, `gated_width(4 width)`."""
    classes: Annotated[int, Field(ge=1)] = 1000
    """Classes that the network knows; those of the data are the first of them."""
    registers: Annotated[int, Field(ge=0)] = 1
    """Extra positions, without meaning of their own, that attention may write to."""
    dropout: Fraction = 0.0
    """On the outputs of attention and feed-forward layers, in training mode only."""

    def build(self, context: Context) -> HaltonTeacher:
        """The network for the tokens of `context`, with fresh weights."""
        if self.heads > self.width:
            raise RecipeError(f"heads: {self.heads} is more than width: {self.width}")
        return HaltonTeacher(self, one_group(self.use or "halton", context, self.classes))


def modulation(width: int, n: int) -> nn.Sequential:
    """n vectors of the sequence's width from the class vector: [B D] -> [B n D]."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, n * width), nn.Unflatten(-1, (n, width)))


class Attention(nn.Module):
    """Attention of every position to every position; queries and keys are normalized over all heads together."""

    def __init__(self, spec: Halton) -> None:
        super().__init__()
        self.heads = spec.heads
        self.inner = inner = spec.heads * (spec.width // spec.heads)
        self.wq, self.wk, self.wv = (nn.Linear(spec.width, inner, bias=False) for _ in range(3))
        self.wo = nn.Linear(inner, spec.width, bias=False)

    def forward(self, x: Embedding) -> Embedding:
        """[B L D] -> [B L D]."""
        q, k = (functional.rms_norm(w(x), (self.inner,), eps=EPS) for w in (self.wq, self.wk))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, self.wv(x)))
        mixed = attend(q, k, v.to(q.dtype))
        out: Tensor = self.wo(mixed.transpose(1, 2).flatten(2))
        return out


class GatedMLP(nn.Module):
    """W_2 (silu(W_1 x) * W_3 x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Embedding) -> Embedding:
        """Of every position."""
        out: Tensor = self.w2(functional.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    """x + gate * fn((1 + scale) rms(x) + shift) for attention, then for the feed-forward layer."""

    def __init__(self, spec: Halton) -> None:
        super().__init__()
        D = spec.width
        self.mlp = modulation(D, 6)
        self.ln1, self.ln2 = nn.RMSNorm(D, EPS), nn.RMSNorm(D, EPS)
        self.attn, self.ff = Attention(spec), GatedMLP(D, spec.hidden or gated_width(4 * D))
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x: Embedding, c: ClassVector) -> Embedding:
        """One block, modulated by the class vector."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.mlp(c)[:, :, None].unbind(1)
        x = x + gate_1 * self.dropout(self.attn((1 + scale_1) * self.ln1(x) + shift_1))
        out: Tensor = x + gate_2 * self.dropout(self.ff((1 + scale_2) * self.ln2(x) + shift_2))
        return out


class RMSNormBias(nn.RMSNorm):
    """Root-mean-square norm with weight and bias."""

    def __init__(self, width: int) -> None:
        super().__init__(width, EPS)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Over the last dimension."""
        return super().forward(x) + self.bias


class LastNorm(nn.Module):
    """(1 + scale) norm(x) + shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_final, self.mlp = RMSNormBias(width), modulation(width, 2)

    def forward(self, x: Embedding, c: ClassVector) -> Embedding:
        """Modulated by the class vector."""
        shift, scale = self.mlp(c)[:, :, None].unbind(1)
        out: Tensor = (1 + scale) * self.norm_final(x) + shift
        return out


class Transformer(nn.Module):
    """The stack. `HaltonTeacher.forward` runs it."""

    def __init__(self, spec: Halton) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.depth))


class HaltonTeacher(TableTeacher):
    """The network of `Halton`. Row V of the table is the mask; the last row of the classes' is the null class."""

    def __init__(self, spec: Halton, shape: TokenShape) -> None:
        super().__init__()
        self.shape, self.width, self.depth, self.classes = shape, spec.width, spec.depth, spec.classes
        self.outputs = shape.V
        """Logits per token; V + 1 adds the public network's own for the mask id, for comparisons with it."""
        D = spec.width
        self.cls_emb, self.tok_emb = nn.Embedding(spec.classes + 1, D), nn.Embedding(shape.V + 1, D)
        self.pos_emb = nn.Embedding(shape.L, D)
        self.reg_tokens = nn.Embedding(spec.registers, D) if spec.registers else None
        self.transformer = Transformer(spec)
        self.last_norm = LastNorm(D)
        self.head = nn.Linear(D, shape.V + 1)
        self.head.weight = self.tok_emb.weight
        for table in (self.cls_emb, self.tok_emb, self.pos_emb, *filter(None, [self.reg_tokens])):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, e: Embedding, cond: Cond, at: Mask | None = None, features: Sequence[int] = ()) -> Output:
        """Logits in fp32 and the outputs of the blocks `features`, registers left out; see `Teacher.forward`."""
        L = self.shape.L
        headless = at is not None and not bool(at.any())
        c = functional.embedding(cond.labels % (self.classes + 1), self.cls_emb.weight)  # -1 is the last row
        x = e + self.pos_emb.weight
        if self.reg_tokens is not None:
            x = torch.cat([x, self.reg_tokens.weight.to(x.dtype).expand(len(x), -1, -1)], 1)
        x, seen = run_blocks(self.transformer.layers, x, features, headless, c)
        wanted = tuple(f[:, :L] for f in seen)
        if headless:
            return Output(torch.empty(0, self.outputs, device=e.device), wanted)
        x = self.last_norm(x[:, :L], c)[:, :, None]
        x = x if at is None else x[at]
        logits = x @ self.tok_emb.weight[: self.outputs].T
        return Output(wide(logits) + wide(self.head.bias[: self.outputs]), wanted)

    def frozen(self) -> tuple[str, ...]:
        """The table and with it the tied head, positions, and output bias."""
        return "tok_emb", "pos_emb", "head"

    def layers(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        return tuple(self.transformer.layers)
