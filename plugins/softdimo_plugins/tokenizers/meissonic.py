"""Meissonic's tokenizer: a convolutional VQ-VAE with one code per 16 x 16 pixels, as aMUSEd's, built by diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, ImageShape, Tokenizer, TokenShape
from softdimo.math.precision import wide
from softdimo.shapes import Image, Probs, Tokens
from softdimo.weights import Published, Shapes, count
from softdimo_plugins.diffusers_files import DiffusersSpec, needing_diffusers
from softdimo_plugins.mixtures import expected
from softdimo_plugins.public import PublicPyramid
from softdimo_plugins.tokenizers.codebook import nearest_code

Count = Annotated[int, Field(ge=1)]
Latents = Float[Tensor, "B L dim"]


def sizes(shapes: Shapes) -> dict[str, int]:
    """Settings that the weights show."""
    codes, dim = shapes["quantize.embedding.weight"]
    levels = count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    return {
        "codebook": codes,
        "dim": dim,
        "latent": shapes["encoder.conv_out.weight"][0],
        "channels of the images": shapes["encoder.conv_in.weight"][1],
        "number of widths": levels,
        "first of the widths": shapes["encoder.conv_in.weight"][0],
        "last of the widths": shapes["decoder.conv_in.weight"][0],
        "blocks": count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "attention": any(".mid_block.attentions." in key for key in shapes),
    }


class MeissonicVQ(DiffusersSpec, PublicPyramid):
    """Residual blocks at five resolutions on either side of a learned codebook. Decoding ignores the condition."""

    published: ClassVar[Published] = Published("Meissonic's VQ-VAE", sizes)
    told: ClassVar[dict[str, str]] = {"norm_groups": "norm_num_groups"}
    codebook: Annotated[int, Field(ge=2)] = 8192
    """Codes V."""
    dim: Count = 64
    """Numbers per code."""
    latent: Count = 64
    """Channels of encoder and decoder where the codes are."""
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (128, 256, 256, 512, 768)
    """Channels at each resolution, finest first; each next one is half as large."""
    blocks: Count = 2
    """Residual blocks at each resolution of the encoder; the decoder has one more."""
    norm_groups: Count = 32
    """Groups of channels of every norm; they divide the widths. The weights do not show them."""
    attention: bool = False
    """Attention at the coarsest resolution."""
    top_k: Count | None = None
    """Soft decoding mixes the k most probable codes only, in proportion to their probabilities."""
    at_once: Count | None = 1
    """Images that pass encoder and decoder together; all when null. Where gradients are asked for, the decoder keeps
    nothing of them but its input and computes the rest anew, so that memory does not grow with the batch."""

    def token_shape(self, image: ImageShape) -> TokenShape:
        """Shape of the tokens of such images, without building anything; RecipeError if there is none."""
        patch, name = 2 ** (len(self.widths) - 1), self.use or "meissonic_vq"
        if image.H % patch or image.W % patch:
            raise RecipeError(f"{name} needs sides that are multiples of {patch}; images are {image.H} x {image.W}")
        return TokenShape(image.H // patch, image.W // patch, 1, self.codebook)

    def build(self, context: Context) -> MeissonicTokenizer:
        """The tokenizer for the images of `context`, with fresh weights. PluginError without the extra `text`."""
        wrong = [n for n in self.widths if n % self.norm_groups]
        if wrong:
            raise RecipeError(f"norm_groups: {self.norm_groups} does not divide {wrong[0]} of widths")
        return MeissonicTokenizer(self, context.image)


class MeissonicTokenizer(Tokenizer):
    """The networks of `MeissonicVQ`, which see pixels in [0, 1] as they are."""

    def __init__(self, spec: MeissonicVQ, image: ImageShape) -> None:
        with needing_diffusers("the tokenizer `meissonic_vq`"):
            from diffusers.models.autoencoders.vq_model import VQModel
        super().__init__()
        self.image, self.shape, self.spec = image, spec.token_shape(image), spec
        levels = len(spec.widths)
        whole = VQModel(
            in_channels=image.C, out_channels=image.C, block_out_channels=spec.widths, layers_per_block=spec.blocks,
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
            latent_channels=spec.latent, num_vq_embeddings=spec.codebook, vq_embed_dim=spec.dim,
            norm_num_groups=spec.norm_groups, mid_block_add_attention=spec.attention,
        )  # fmt: skip
        self.encoder: nn.Module = whole.encoder
        self.decoder: nn.Module = whole.decoder
        self.quantize: nn.Module = whole.quantize
        self.quant_conv: nn.Module = whole.quant_conv
        self.post_quant_conv: nn.Module = whole.post_quant_conv

    def codes(self) -> Float[Tensor, "V dim"]:
        """The codebook."""
        return self.quantize.get_parameter("embedding.weight")

    def latents(self, img: Image) -> Latents:
        """What the encoder makes of images, before the nearest codes take its place; in fp32."""
        return wide(self.quant_conv(self.encoder(img)).flatten(2).transpose(1, 2))

    @torch.no_grad()
    def encode(self, img: Image) -> Tokens:
        """The nearest codes [B L 1]."""
        if tuple(img.shape[1:]) != tuple(self.image):
            raise ValueError(f"images {tuple(img.shape)}, but the tokenizer was built for {tuple(self.image)}")

        def nearest(some: Image) -> Tensor:
            z = self.latents(some)
            return nearest_code(z.flatten(0, 1), wide(self.codes())).view(len(z), -1, 1)

        return self._in_turn(nearest, img)

    def decode(self, tokens: Tokens, cond: Cond | None = None) -> Image:
        """Images of token ids in [0, V)."""
        return self.pixels(self.codes()[tokens[..., 0]]).clamp(0, 1)

    def decode_soft(self, probs: Probs, cond: Cond | None = None) -> Image:
        """Images of the expected codes sum_v p_v C_v; differentiable in `probs`."""
        return self.pixels(self.expected(probs)).clamp(0, 1)

    def expected(self, probs: Probs) -> Latents:
        """Expected codes, in the codebook's precision."""
        return expected(self.codes(), probs.flatten(2), self.spec.top_k)

    def pixels(self, z: Latents) -> Image:
        """The decoder's output, about [0, 1] and not clamped, in fp32."""
        return self._in_turn(self._drawn, z)

    def _drawn(self, z: Latents) -> Image:
        grid = z.transpose(1, 2).reshape(len(z), -1, self.shape.rows, self.shape.cols)
        return wide(self.decoder(self.post_quant_conv(grid)))

    def _in_turn(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """fn of a few samples at a time; with gradients it keeps its inputs alone."""
        if self.spec.at_once is None:
            return fn(x)
        parts = torch.split(x, self.spec.at_once)
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            return torch.cat([checkpoint(fn, p, use_reentrant=False, preserve_rng_state=False) for p in parts])
        return torch.cat([fn(p) for p in parts])
