"""MaskGen (VQ), a masked text-to-image model on 128 tokens (arXiv 2501.07730), on the blocks of diffusers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import PluginError, RecipeError
from softdimo.kinds import NULL, Cond, Context, Output, TokenShape
from softdimo.math.precision import wide
from softdimo.shapes import Embedding, Mask, PerSample
from softdimo.weights import Published, Shapes, count
from softdimo_plugins.encodings import encoding
from softdimo_plugins.layers import run_blocks
from softdimo_plugins.public import PublicTransformer, TableTeacher
from softdimo_plugins.teachers.maskgit import one_group

EPS = 1e-6
"""Of the last norm; those of the blocks have the same."""
PERIOD = 1000.0
"""Longest period of the aesthetic score's code."""
READER = "the teacher `maskgen`"


def sizes(shapes: Shapes) -> dict[str, int]:
    """Settings that the weights show; the table's rows are V codes, the mask, the unused classes and a null class."""
    ids, width = shapes["tok_emb.weight"]
    text = shapes["text_embed_proj.weight"][1]
    return {
        "width": width,
        "depth": count(shapes, r"blocks\.(\d+)\."),
        "text_width": text,
        "score_width": shapes["cond_pooled_proj.weight"][1] - text,
        "codes + classes": ids - 2,
        "tied": "lm_head.bias" not in shapes,
        "tokens": shapes["pos_embed"][1],
    }


class MaskGen(PublicTransformer):
    """Tokens and text in one sequence, each with weights of its own, as in Stable Diffusion 3; no time input.

    The text encoder gives `states` [B T text_width], which the tokens attend to, and `pooled` [B text_width], which
    modulates every block. The defaults are those of the public size L; XL has width 1280 and depth 20.
    """

    published: ClassVar[Published] = Published(
        "MaskGen VQ",
        sizes,
        renames=((r"^embeddings\.", "tok_emb."),),
        tied=(("lm_head.weight", "tok_emb.weight"),),
    )
    public_heads: ClassVar[dict[tuple[int, int], int]] = {(1024, 16): 16, (1280, 20): 16}
    width: Annotated[int, Field(ge=8)] = 1024
    """Width D of the sequence."""
    depth: Annotated[int, Field(ge=1)] = 16
    """Joint blocks; the last one updates the tokens alone."""
    heads: Annotated[int, Field(ge=1)] = 16
    """Attention heads; they divide the width. The weights do not show them."""
    text_width: Annotated[int, Field(ge=1)] = 768
    """Width of the text encoder's `states` and `pooled`."""
    score_width: Annotated[int, Field(ge=0, multiple_of=2)] = 256
    """Width of the code of the aesthetic score; 0 for a network that takes none (micro-condition off)."""
    aesthetic: float = 6.5
    """The aesthetic score that images are asked to have, the same with and without the prompt."""
    classes: Annotated[int, Field(ge=0)] = 1000
    """Rows of the table for classes, which the public network has and never uses."""
    tied: bool = True
    """The head is the table; otherwise it has weights and a bias of its own."""

    def build(self, context: Context) -> MaskGenTeacher:
        """The network for the tokens of `context`, with fresh weights. PluginError without the extra `text`."""
        shape = one_group(self.use or "maskgen", context)
        if self.width % self.heads:
            raise RecipeError(f"heads: {self.heads} does not divide width: {self.width}")
        return MaskGenTeacher(self, shape)

    def layout(self) -> Published:
        """A head that is not tied has weights of its own."""
        return self.published if self.tied else replace(self.published, tied=())

    def told_heads(self, path: Path) -> int:
        """`decoder_num_heads` of the public config.json beside the file, if there is one; else of the public size."""
        try:
            config = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
            return int(config["model"]["maskgen"]["decoder_num_heads"])
        except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is another program's
            return super().told_heads(path)


def score_code(score: PerSample, width: int) -> Float[Tensor, "B width"]:
    """[sin(100 a f), cos(100 a f)] of scores a, with f_i = 1000^(-2 i / width), in float32."""
    half = width // 2
    f = torch.exp(-math.log(PERIOD) * torch.arange(half, dtype=torch.float32, device=score.device) / half)
    angle = (score * 100)[:, None].float() * f
    return torch.cat([angle.sin(), angle.cos()], -1)


class MaskGenTeacher(TableTeacher):
    """The network of `MaskGen`. Row V of the table is the mask; the rows after it are never used."""

    def __init__(self, spec: MaskGen, shape: TokenShape) -> None:
        try:
            from diffusers.models.attention import JointTransformerBlock
            from diffusers.models.normalization import AdaLayerNormContinuous
        except ImportError as error:
            raise PluginError(f"{READER} needs diffusers ({error}): run `pip install 'softdimo[text]'`") from error
        super().__init__()
        self.shape, self.width, self.depth, self.tied = shape, spec.width, spec.depth, spec.tied
        self.text_width, self.score_width, self.aesthetic = spec.text_width, spec.score_width, spec.aesthetic
        D, ids = spec.width, shape.V + spec.classes + 2
        self.pos_embed = nn.Parameter(torch.empty(1, shape.L, D))
        self.text_embed_proj = nn.Linear(spec.text_width, D)
        self.cond_pooled_proj = nn.Linear(spec.text_width + spec.score_width, D)
        self.blocks = nn.ModuleList(
            JointTransformerBlock(D, spec.heads, D // spec.heads, context_pre_only=i == spec.depth - 1)
            for i in range(spec.depth)
        )
        self.norm = AdaLayerNormContinuous(D, D, elementwise_affine=False, eps=EPS)
        self.tok_emb = nn.Embedding(ids, D)
        self.lm_head = nn.Linear(D, ids if spec.tied else shape.V, bias=not spec.tied)
        if spec.tied:
            self.lm_head.weight = self.tok_emb.weight
        self._start()

    def _start(self) -> None:
        """Fresh weights as published: 0.02 times a truncated normal, no biases; the last norms modulate by nothing."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name in ("norm.linear", f"blocks.{self.depth - 1}.norm1_context.linear"):
            nn.init.zeros_(self.get_submodule(name).get_parameter("weight"))

    def forward(self, e: Embedding, cond: Cond, at: Mask | None = None, features: Sequence[int] = ()) -> Output:
        """Logits in fp32 and the tokens' outputs of the blocks `features`; see `Teacher.forward`.

        RecipeError where `cond` lacks `states` or `pooled`.
        """
        headless = at is not None and not bool(at.any())
        y: Tensor = self.text_embed_proj(encoding(cond, "states", (None, self.text_width), READER).to(e.dtype))
        h = self.modulation(cond, e)

        def joint(block: nn.Module) -> Callable[[Embedding], Embedding]:
            def both(x: Embedding) -> Embedding:
                nonlocal y
                y, x = block(x, y, h)  # the text is None after the last block
                return x

            return both

        x, seen = run_blocks(map(joint, self.blocks), e + self.pos_embed, features, headless)
        if headless:
            return Output(torch.empty(0, self.shape.V, device=e.device), seen)
        x = self.norm(x, h)[:, :, None]
        return Output(wide(self.head(x if at is None else x[at])), seen)

    def modulation(self, cond: Cond, e: Embedding) -> Float[Tensor, "B D"]:
        """What modulates the blocks: the pooled text, and the code of the aesthetic score if the network takes it."""
        pooled = encoding(cond, "pooled", (self.text_width,), READER).to(e.dtype)
        if self.score_width:
            score = torch.full((len(e),), self.aesthetic, device=e.device)
            pooled = torch.cat([pooled, score_code(score, self.score_width).to(e.dtype)], -1)
        h: Tensor = self.cond_pooled_proj(pooled)
        return h

    def head(self, x: Float[Tensor, "*units D"]) -> Float[Tensor, "*units V"]:
        """Logits of the V codes."""
        return functional.linear(x, self.lm_head.weight[: self.shape.V], self.lm_head.bias)

    def null(self, cond: Cond) -> Cond:
        """The encodings of the unconditional prompt; RecipeError where there are none, as that would be no guidance."""
        for name in ("states", "pooled"):
            if name in cond.tensors:
                encoding(cond, f"{NULL}{name}", tuple(cond.tensors[name].shape[1:]), READER)
        return super().null(cond)

    def frozen(self) -> tuple[str, ...]:
        """The table with the tied head (or the head), and positions: what Di[M]O freezes of other teachers."""
        return ("tok_emb", "pos_embed") if self.tied else ("tok_emb", "pos_embed", "lm_head")

    def layers(self) -> Sequence[nn.Module]:
        """The joint blocks."""
        return tuple(self.blocks)
