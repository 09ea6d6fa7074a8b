"""A small class-conditional masked transformer: the backbone that a recipe can train from nothing in a minute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, Output, Teacher, TokenShape
from softdimo.math.precision import wide
from softdimo.shapes import Embedding, Mask, Probs, Tokens
from softdimo.spec import NetworkSpec
from softdimo_plugins.layers import attend, full_precision, run_blocks

STD = 0.3
"""Of fresh tables and positions. Small transformers learn about twice as fast as from the usual 0.02."""


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return functional.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": squared_relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
}


class Compact(NetworkSpec):
    """Pre-norm bidirectional transformer: a class token first, learned positions, a head tied to the table."""

    width: Annotated[int, Field(ge=8)] = 64
    """Width D of the sequence."""
    depth: Annotated[int, Field(ge=1)] = 3
    """Transformer blocks."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads; they divide the width."""
    expansion: Annotated[int, Field(ge=1)] = 4
    """Hidden width of the feed-forward layers, in multiples of D."""
    activation: Literal["relu2", "silu", "gelu"] = "silu"
    """Of the feed-forward layers."""
    local: bool = True
    """A depthwise 3 x 3 convolution over the token grid before each block: neighbors count from the start."""

    def build(self, context: Context) -> CompactTeacher:
        """The network for the tokens and classes of `context`, with fresh weights."""
        return CompactTeacher(self, self.tokens(context), ClassToken(len(context.classes), self.width))

    def tokens(self, context: Context) -> TokenShape:
        """The shape of the tokens. RecipeError where there is none, or settings contradict one another."""
        if context.tokens is None:
            raise RecipeError("a compact teacher needs a tokenizer; add a `tokenizer:` section")
        if self.width % self.heads:
            raise RecipeError(f"heads: {self.heads} does not divide width: {self.width}")
        return context.tokens


class ClassToken(nn.Embedding):
    """Class labels as a sequence of one."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes + 1, width)  # the last is the unconditional branch

    def forward(self, cond: Cond) -> Float[Tensor, "B 1 D"]:  # type: ignore[override]
        """A row for each label; -1 is the last."""
        return super().forward(cond.labels % self.num_embeddings)[:, None]


class Block(nn.Module):
    """x + convolution(x) on the grid, x + attention(norm(x)), x + feed-forward(norm(x)): [B P+L D] -> [B P+L D]."""

    def __init__(self, spec: Compact, shape: TokenShape) -> None:
        super().__init__()
        width, expansion = spec.width, spec.expansion
        self.heads, self.activation, self.grid = spec.heads, ACTIVATIONS[spec.activation], (shape.rows, shape.cols)
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width) if spec.local else None
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.widen = nn.Linear(width, expansion * width)
        self.narrow = nn.Linear(expansion * width, width)

    def forward(self, x: Embedding) -> Embedding:
        """One block; the condition's P tokens are the first of the sequence and no part of the grid."""
        B, L, D = x.shape
        if self.local is not None:
            P = L - self.grid[0] * self.grid[1]
            near = self.local(x[:, P:].transpose(1, 2).reshape(B, D, *self.grid)).flatten(2).transpose(1, 2)
            x = x + functional.pad(near, (0, 0, P, 0))
        q, k, v = self.qkv(self.norm_attention(x)).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.merge(attend(q, k, v).transpose(1, 2).reshape(B, L, D))
        out: Tensor = x + self.narrow(self.activation(self.widen(self.norm_mlp(x))))
        return out


class CompactTeacher(Teacher):
    """The network of `Compact`. The unit embeddings of a position's groups are summed; row V of a table is the mask.

    `condition` gives the sequence [B P D] that stands before the tokens.
    """

    def __init__(self, spec: Compact, shape: TokenShape, condition: nn.Module) -> None:
        super().__init__()
        self.shape, self.width, self.depth = shape, spec.width, spec.depth
        D = spec.width
        self.table = nn.Parameter(torch.empty(shape.G, shape.V + 1, D))
        self.positions = nn.Parameter(torch.empty(shape.L + 1, D))  # the condition's first
        self.output_bias = nn.Parameter(torch.empty(shape.G, shape.V))
        self.condition = condition
        self.blocks = nn.ModuleList(Block(spec, shape) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(D)
        self.project = nn.Linear(D, shape.G * D)
        self.reset()

    def reset(self) -> None:
        """Fresh weights: tables `STD`, linear layers 0.7 / sqrt(fan in), half of that where a residual branch ends.

        The head's projection makes up for the large tables, so that the first logits are near 0.
        """
        tables = (module.weight for module in self.modules() if isinstance(module, nn.Embedding))
        for tensor in (self.table, self.positions, *tables):
            nn.init.normal_(tensor, std=STD)
        nn.init.zeros_(self.output_bias)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                gain = 0.35 if name.endswith(("merge", "narrow")) else 0.7 * 0.02 / STD if name == "project" else 0.7
                nn.init.normal_(module.weight, std=gain * module.in_features**-0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, std=0.05)
                nn.init.zeros_(module.bias)

    def embed(self, tokens: Tokens) -> Embedding:
        """Sum over groups of the table rows of ids in [0, V]."""
        G, rows, D = self.table.shape
        offsets = torch.arange(0, G * rows, rows, device=tokens.device)
        return functional.embedding(tokens + offsets, self.table.view(G * rows, D)).sum(2)

    def soften(self, probs: Probs, mask: Mask | None = None) -> Embedding:
        """sum_g E_g^T p_g in the table's precision; masked units contribute their mask row."""
        with full_precision(probs.device):
            probs = probs.to(self.table.dtype)
            if mask is not None:
                probs = probs.masked_fill(mask[..., None], 0)
            e = torch.einsum("blgv,gvd->bld", probs, self.table[:, :-1])
            if mask is not None:
                e = e + torch.einsum("blg,gd->bld", mask.to(e.dtype), self.table[:, -1])
        return e

    def forward(self, e: Embedding, cond: Cond, at: Mask | None = None, features: Sequence[int] = ()) -> Output:
        """Logits in fp32 and the outputs of the blocks `features`, at the tokens; see `Teacher.forward`."""
        headless = at is not None and not bool(at.any())
        before: Embedding = self.condition(cond)
        x = torch.cat([before + self.positions[:1], e + self.positions[1:]], 1)
        x, seen = run_blocks(self.blocks, x, features, headless)
        P = before.shape[1]
        wanted = tuple(f[:, P:] for f in seen)
        if headless:
            return Output(torch.empty(0, self.shape.V, device=e.device), wanted)
        x = x[:, P:]
        if at is None:
            return Output(self.head(x), wanted)
        rows = at.any(-1)
        return Output(self.head(x[rows])[at[rows]], wanted)

    def head(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N G V"]:
        """Logits of every group from the last block's output."""
        h = self.project(self.norm(x)).unflatten(-1, (self.shape.G, self.width))
        logits: Tensor = wide(torch.einsum("...gd,gvd->...gv", h, self.table[:, :-1]))
        return logits + wide(self.output_bias)

    def table_rms(self) -> Tensor:
        """Root mean square over the tables' visual rows (the mask rows left out)."""
        return wide(self.table[:, :-1]).square().mean().sqrt()

    def frozen(self) -> tuple[str, ...]:
        """Embedding tables (and with them the tied head), positions, output bias."""
        return "table", "positions", "output_bias"

    def layers(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        return tuple(self.blocks)
