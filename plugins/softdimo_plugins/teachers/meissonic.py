"""Meissonic, a masked text-to-image transformer for 1024 px (Bai et al. 2024, arXiv 2410.08261), on diffusers' blocks.

Monetico, its sibling for 512 px, is the same without the layers that halve the grid of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import NULL, Cond, Context, Output, Teacher, TokenShape
from softdimo.math.precision import wide
from softdimo.shapes import Embedding, Mask, Probs, Tokens
from softdimo.weights import Published, Shapes, count
from softdimo_plugins.diffusers_files import DiffusersSpec, needing_diffusers
from softdimo_plugins.encodings import encoding
from softdimo_plugins.layers import full_precision, run_blocks
from softdimo_plugins.mixtures import expected
from softdimo_plugins.teachers.maskgit import one_group

EPS = 1e-6
"""Of every norm."""
CODE, FACTS = 256, 5
"""Numbers that a time or a fact is coded by, and micro-conditions: width, height, crop, crop, aesthetic score."""
AESTHETIC = 6.0
"""The aesthetic score that the public code asks images to have."""
READER = "the teacher `meissonic`"
Axis = Annotated[int, Field(ge=2, multiple_of=2)]


def sizes(shapes: Shapes) -> dict[str, int]:
    """Settings that the weights show."""
    codes, width = shapes["mlm_layer.conv2.weight"][0], shapes["stem.conv.weight"][0]
    return {
        "tokenizer.codebook": codes,
        "spare": shapes["stem.embeddings.weight"][0] - codes,
        "width": width,
        "heads": width // shapes["transformer_blocks.0.attn.norm_q.weight"][0],
        "joint": count(shapes, r"transformer_blocks\.(\d+)\."),
        "single": count(shapes, r"single_transformer_blocks\.(\d+)\."),
        "text_width": shapes["context_embedder.weight"][1],
        "halve": "down_block.downsample.conv.weight" in shapes,
    }


class Meissonic(DiffusersSpec):
    """Text and tokens in one sequence: first with weights of their own in each block, then with the same ones.

    The text encoder gives `states` [B T text_width], which the tokens attend to, and `pooled` [B width], which
    modulates every block together with the time and the micro-conditions. Conditions may carry `timestep` [B] and
    `micro` [B 5] in place of the settings here: samplers tell their steps so. The defaults are those of the public
    weights for 1024 px. Those for 512 px (Monetico) halve nothing, `{halve: false}`; a file says what else it has.
    """

    published: ClassVar[Published] = Published("Meissonic's transformer", sizes, renames=((r"^embed\.", "stem."),))
    told: ClassVar[dict[str, str]] = {"axes": "axes_dims_rope"}
    width: Annotated[int, Field(ge=8)] = 1024
    """Width D of the sequence."""
    joint: Annotated[int, Field(ge=1)] = 14
    """First blocks, in which text and tokens have weights of their own."""
    single: Annotated[int, Field(ge=1)] = 28
    """Further blocks, in which they share them."""
    heads: Annotated[int, Field(ge=1)] = 8
    """Attention heads; they divide the width."""
    axes: tuple[Axis, Axis, Axis] = (16, 56, 56)
    """Of each head's width, how much turns by a constant, by the row, by the column. The weights do not show it."""
    text_width: Annotated[int, Field(ge=1)] = 1024
    """Width of the text encoder's `states`."""
    spare: Annotated[int, Field(ge=1)] = 64
    """Rows of the table after those of the codes; the last one is the mask, the others are never used."""
    halve: bool = True
    """The blocks see a grid of half the rows and columns. False for the weights for 512 px."""
    timestep: float = 0.0
    """The time that the network is told: 0 in all of Di[M]O's passes (the public code cuts the mask ratio to an
    integer), the number of steps to go in the sampler `meissonic`, which sees to that itself."""
    micro: tuple[float, float, float, float, float] | None = None
    """Width, height, crop from the left and from the top, and aesthetic score that images are asked to have; when null
    those of the data's images, no crop, and 6."""
    mixing: Literal["after", "before"] = "after"
    """Where soft tokens mix. `after`: the embeddings of the codes, of one size, as noise is added to them; a mixture is
    smaller. `before`: the table's rows, before the norm that gives every token, mixtures too, the same size; then the
    soft embedding is not linear in the probabilities."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Mix the k most probable codes only, in proportion to their probabilities."""

    def build(self, context: Context) -> MeissonicTeacher:
        """The network for the tokens of `context`, with fresh weights. PluginError without the extra `text`."""
        shape = one_group(self.use or "meissonic", context)
        if self.width % self.heads:
            raise RecipeError(f"heads: {self.heads} does not divide width: {self.width}")
        if sum(self.axes) != self.width // self.heads:
            raise RecipeError(f"axes: {list(self.axes)} must make the width of a head, {self.width // self.heads}")
        if self.halve and (shape.rows % 2 or shape.cols % 2):
            raise RecipeError(f"halve: {shape.rows} x {shape.cols} tokens cannot be halved; take another size of image")
        image = context.image
        micro = self.micro or (float(image.W), float(image.H), 0.0, 0.0, AESTHETIC)
        return MeissonicTeacher(self, shape, micro)

    def smoke(self) -> Self:
        """A block of each kind, with random weights instead of a file's; all else keeps its size."""
        return super().smoke().model_copy(update={"joint": 1, "single": 1})


class HeadNorm(nn.RMSNorm):
    """Root-mean-square norm of queries and keys, in float32 whatever autocast makes of them."""

    def forward(self, x: Tensor) -> Tensor:
        """Over the last dimension; of the precision of `x`."""
        return functional.rms_norm(wide(x), tuple(self.normalized_shape), wide(self.weight), EPS).to(x.dtype)


class MeissonicTeacher(Teacher):
    """The network of `Meissonic`. The input embedding is the table's row, normed and projected, token by token."""

    def __init__(self, spec: Meissonic, shape: TokenShape, micro: tuple[float, ...]) -> None:
        with needing_diffusers(READER):
            from diffusers.models import embeddings
            from diffusers.models.downsampling import Downsample2D
            from diffusers.models.normalization import RMSNorm
            from diffusers.models.transformers.transformer_flux import (
                FluxPosEmbed,
                FluxSingleTransformerBlock,
                FluxTransformerBlock,
            )
            from diffusers.models.unets.uvit_2d import ConvMlmLayer, UVit2DConvEmbed
            from diffusers.models.upsampling import Upsample2D
        super().__init__()
        self.shape, self.width, self.depth = shape, spec.width, spec.joint + spec.single
        self.spec, self.micro, self.linear = spec, micro, spec.mixing == "after" and spec.top_k is None
        D, head = spec.width, spec.width // spec.heads
        self.grid = (shape.rows // 2, shape.cols // 2) if spec.halve else (shape.rows, shape.cols)
        """Rows and columns that the blocks see."""
        self.pos_embed = FluxPosEmbed(10000, list(spec.axes))
        self.fact_code = embeddings.Timesteps(CODE, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_text_embed = embeddings.CombinedTimestepTextProjEmbeddings(D, D)
        self.cond_embed = embeddings.TimestepEmbedding(D + FACTS * CODE, D, sample_proj_bias=False)
        self.context_embedder = nn.Linear(spec.text_width, D)
        self.encoder_proj_layer_norm = RMSNorm(D, EPS)
        self.stem = UVit2DConvEmbed(D, D, shape.V + spec.spare, True, EPS, False)
        if spec.halve:
            same = {"norm_type": "rms_norm", "eps": EPS, "elementwise_affine": True, "bias": False}
            half = Downsample2D(D, use_conv=True, padding=0, name="Conv2d_0", kernel_size=2, **same)
            twice = Upsample2D(D, use_conv_transpose=True, kernel_size=2, padding=0, interpolate=False, **same)
            self.down_block, self.up_block = nn.ModuleDict({"downsample": half}), nn.ModuleDict({"upsample": twice})
        self.project_to_hidden_norm = RMSNorm(D, EPS)
        self.project_to_hidden = nn.Linear(D, D, bias=False)
        self.transformer_blocks = nn.ModuleList(FluxTransformerBlock(D, spec.heads, head) for _ in range(spec.joint))
        self.single_transformer_blocks = nn.ModuleList(
            FluxSingleTransformerBlock(D, spec.heads, head) for _ in range(spec.single)
        )
        for block in self.layers():
            for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
                if hasattr(block.attn, name):
                    setattr(block.attn, name, HeadNorm(head, EPS))
        self.project_from_hidden_norm = RMSNorm(D, EPS)
        self.project_from_hidden = nn.Linear(D, D, bias=False)
        self.mlm_layer = ConvMlmLayer(D, D, False, True, EPS, shape.V)

    def embed(self, tokens: Tokens) -> Embedding:
        """The embeddings of ids in [0, V]; the mask has the last row of the table."""
        table, ids = self.stem.embeddings.weight, tokens[..., 0]
        return self._project(functional.embedding(ids.masked_fill(ids == self.shape.V, len(table) - 1), table))

    def soften(self, probs: Probs, mask: Mask | None = None) -> Embedding:
        """The expected embedding, or the embedding of the expected row (`mixing`); the mask's where masked."""
        table, p = self.stem.embeddings.weight, probs.flatten(2)  # a view, whose gradient is one too
        rows = table[: self.shape.V]
        if self.spec.mixing == "after":
            e = expected(self._project(rows), p, self.spec.top_k)
        else:
            e = self._project(expected(rows, p, self.spec.top_k))
        return e if mask is None else torch.where(mask, self._project(table[-1:]), e)

    def _project(self, rows: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """What the stem makes of rows of the table, each by itself, in the precision of its weights."""
        with full_precision(rows.device):
            return functional.linear(self.stem.layer_norm(rows), self.stem.conv.weight[:, :, 0, 0])

    def forward(self, e: Embedding, cond: Cond, at: Mask | None = None, features: Sequence[int] = ()) -> Output:
        """Logits in fp32 and the tokens' outputs of the blocks `features`; see `Teacher.forward`.

        Features have the positions of the grid that the blocks see. RecipeError where `cond` lacks an encoding.
        """
        headless = at is not None and not bool(at.any())
        states = encoding(cond, "states", (None, self.spec.text_width), READER)
        y: Tensor = self.encoder_proj_layer_norm(self.context_embedder(states.to(self.stem.embeddings.weight.dtype)))
        temb, rotation = self.modulation(cond, e), self.rotation(y.shape[1], e.device)

        def both(block: nn.Module) -> Callable[[Embedding], Embedding]:
            def tokens(x: Embedding) -> Embedding:
                nonlocal y
                y, x = block(x, y, temb, rotation)
                return x

            return tokens

        x, seen = run_blocks(map(both, self.layers()), self._enter(e), features, headless)
        if headless:
            return Output(torch.empty(0, self.shape.V, device=e.device), seen)
        x = self._leave(x)[:, :, None]
        return Output(self.head(x if at is None else x[at]), seen)

    def modulation(self, cond: Cond, e: Embedding) -> Float[Tensor, "B D"]:
        """What modulates the blocks: time, micro-conditions and pooled text.

        Without autocast: times of 63 or 1000 are multiplied by 1000 before their sine is taken.
        """
        pooled, times = encoding(cond, "pooled", (self.width,), READER), cond.tensors.get("timestep")
        both, dtype = self.time_text_embed, self.stem.embeddings.weight.dtype  # e may come in a lower one
        with full_precision(e.device):
            facts = cond.tensors.get("micro", torch.tensor(self.micro, device=e.device).expand(len(e), -1))
            code = self.fact_code(facts.flatten()).view(len(e), -1)
            u = self.cond_embed(torch.cat([pooled.to(dtype), code.to(dtype)], -1))
            if times is None:
                distinct, which = torch.tensor([self.spec.timestep], device=e.device), torch.zeros_like(cond.labels)
            else:
                distinct, which = torch.unique(times, return_inverse=True)
            time = both.timestep_embedder(both.time_proj(1000 * distinct.float()).to(dtype))
            out: Tensor = time[which] + both.text_embedder(u)
        return out

    def rotation(self, text: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines [text + rows * cols, width of a head]; text stands still, tokens turn by row and column."""
        rows, cols = (torch.arange(n, device=device) for n in self.grid)
        places = functional.pad(torch.cartesian_prod(rows, cols), (1, 0, text, 0))
        cosines, sines = self.pos_embed(places)
        return cosines, sines

    def _enter(self, e: Embedding) -> Embedding:
        """From tokens to the places of the blocks: [B L D] -> [B l D]."""
        if self.spec.halve:
            e = self.down_block["downsample"](_grid(e, self.shape.rows)).flatten(2).transpose(1, 2)
        x: Tensor = self.project_to_hidden(self.project_to_hidden_norm(e))
        return x

    def _leave(self, x: Embedding) -> Embedding:
        """And back: [B l D] -> [B L D]."""
        x = self.project_from_hidden(self.project_from_hidden_norm(x))
        if self.spec.halve:
            x = self.up_block["upsample"](_grid(x, self.grid[0])).flatten(2).transpose(1, 2)
        return x

    def head(self, x: Float[Tensor, "*units D"]) -> Float[Tensor, "*units V"]:
        """Logits of the V codes, each unit by itself."""
        head = self.mlm_layer
        first, second = (conv.weight[:, :, 0, 0] for conv in (head.conv1, head.conv2))
        return wide(functional.linear(head.layer_norm(functional.linear(x, first)), second))

    def null(self, cond: Cond) -> Cond:
        """The encodings of the negative prompt. RecipeError where `cond` has none, which would guide by nothing."""
        for name in ("states", "pooled"):
            if name in cond.tensors:
                encoding(cond, f"{NULL}{name}", tuple(cond.tensors[name].shape[1:]), READER)
        return super().null(cond)

    def table_rms(self) -> Tensor:
        """Root mean square of the codes' embeddings."""
        return wide(self._project(self.stem.embeddings.weight[: self.shape.V])).square().mean().sqrt()

    def frozen(self) -> tuple[str, ...]:
        """The whole input embedding and the head, as in the public Di[M]O code."""
        return "stem", "mlm_layer"

    def layers(self) -> Sequence[nn.Module]:
        """The blocks of both kinds."""
        return (*self.transformer_blocks, *self.single_transformer_blocks)


def _grid(x: Embedding, rows: int) -> Float[Tensor, "B D rows cols"]:
    """Places in rows, channels first."""
    return x.transpose(1, 2).reshape(len(x), x.shape[2], rows, -1)
