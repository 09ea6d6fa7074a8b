"""VQGAN with one code per 16 x 16 pixels (Esser et al. 2021), as MaskGIT's public weights have it, and LlamaGen's."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, ImageShape, Tokenizer, TokenShape
from softdimo.math.precision import wide
from softdimo.shapes import Image, Probs, Tokens
from softdimo.weights import Published, Shapes, count
from softdimo_plugins.layers import full_precision
from softdimo_plugins.public import PublicPyramid
from softdimo_plugins.tokenizers.codebook import nearest_code

NORM_GROUPS, EPS = 32, 1e-6
"""Of every group norm."""
Channels = Annotated[int, Field(ge=NORM_GROUPS, multiple_of=NORM_GROUPS)]
Map = Float[Tensor, "B C h w"]


def sizes(shapes: Shapes) -> dict[str, int]:
    """Settings that the weights show."""
    codes, dim = shapes["quantize.embedding.weight"]
    return {
        "codebook": codes,
        "dim": dim,
        "latent": shapes["encoder.conv_out.weight"][0],
        "width": shapes["encoder.conv_in.weight"][0],
        "channels of the images": shapes["encoder.conv_in.weight"][1],
        "number of multipliers": count(shapes, r"encoder\.down\.(\d+)\."),
        "blocks": count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "levels with attention": len(
            {key.split(".")[2] for key in shapes if key.startswith("encoder.down.") and ".attn." in key}
        ),
    }


class VQGAN(PublicPyramid):
    """Convolutional autoencoder with attention at its coarsest resolution, and one learned codebook."""

    published: ClassVar[Published] = Published("the VQGAN f16/1024", sizes, under="state_dict", beside=("loss.",))
    normalized: ClassVar[bool] = False
    """Codes and latents are compared, and decoded, on the unit sphere."""
    codebook: Annotated[int, Field(ge=2)] = 1024
    """Codes V."""
    dim: Annotated[int, Field(ge=1)] = 256
    """Numbers per code."""
    latent: Annotated[int, Field(ge=1)] = 256
    """Channels of encoder and decoder where the codes are."""
    width: Channels = 128
    """Channels at the finest resolution."""
    multipliers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 1, 2, 2, 4)
    """Channels at each resolution in multiples of `width`, finest first; each next one is half as large."""
    blocks: Annotated[int, Field(ge=1)] = 2
    """Residual blocks at each resolution of the encoder; the decoder has one more."""
    resolution: Annotated[int, Field(ge=1)] = 256
    """The height that the layout was made for; images of another size have the same layers."""
    attention: tuple[int, ...] = (16,)
    """Heights with attention, where the image has the height `resolution`."""

    def token_shape(self, image: ImageShape) -> TokenShape:
        """Shape of the tokens of such images, without building anything; RecipeError if there is none."""
        patch, name = 2 ** (len(self.multipliers) - 1), self.use or "vqgan"
        if image.H % patch or image.W % patch:
            raise RecipeError(f"{name} needs sides that are multiples of {patch}; images are {image.H} x {image.W}")
        return TokenShape(image.H // patch, image.W // patch, 1, self.codebook)

    def build(self, context: Context) -> VQGANTokenizer:
        """The tokenizer for the images of `context`, with fresh weights."""
        return VQGANTokenizer(self, context.image)

    def attends(self, level: int) -> bool:
        """Whether there is attention at a level, 0 being the finest."""
        return self.resolution // 2**level in self.attention


class LlamaGenVQ(VQGAN):
    """LlamaGen's tokenizer of 16 x 16 pixels a code, for which the teacher `halton` was trained."""

    published: ClassVar[Published] = Published(
        "LlamaGen's VQ of 16 x 16 pixels",
        sizes,
        under="model",
        renames=(
            (r"^encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block."),
            (r"^encoder\.conv_blocks\.", "encoder.down."),
            *((rf"^decoder\.conv_blocks\.{i}\.res\.", f"decoder.up.{4 - i}.block.") for i in range(5)),
            *((rf"^decoder\.conv_blocks\.{i}\.", f"decoder.up.{4 - i}.") for i in range(5)),
            (r"\.mid\.0\.", ".mid.block_1."),
            (r"\.mid\.1\.", ".mid.attn_1."),
            (r"\.mid\.2\.", ".mid.block_2."),
        ),
        beside=("quantize.codebook_used",),
    )
    normalized: ClassVar[bool] = True
    codebook: Annotated[int, Field(ge=2)] = 16384
    """Codes V."""
    dim: Annotated[int, Field(ge=1)] = 8
    """Numbers per code."""


def norm(channels: int) -> nn.GroupNorm:
    """Group norm with the published constants."""
    return nn.GroupNorm(NORM_GROUPS, channels, EPS)


def conv(before: int, after: int, size: int = 3) -> nn.Conv2d:
    """Convolution that keeps height and width."""
    return nn.Conv2d(before, after, size, padding=size // 2)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), x through a 1 x 1 convolution where the widths differ."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), conv(before, after)
        self.norm2, self.conv2 = norm(after), conv(after, after)
        self.nin_shortcut = nn.Identity() if before == after else conv(before, after, 1)

    def forward(self, x: Map) -> Map:
        """[B before h w] -> [B after h w]."""
        h = self.conv1(functional.silu(self.norm1(x)))
        out: Tensor = self.nin_shortcut(x) + self.conv2(functional.silu(self.norm2(h)))
        return out


class AttnBlock(nn.Module):
    """x + attention of every position to every position, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (conv(channels, channels, 1) for _ in range(4))

    def forward(self, x: Map) -> Map:
        """[B C h w] -> [B C h w]."""
        n = self.norm(x)
        q, k, v = (f(n).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.proj_out(mixed[:, 0].transpose(1, 2).reshape(n.shape))
        return out


class Middle(nn.Module):
    """A residual block, attention, a residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResBlock(channels, channels),
            AttnBlock(channels),
            ResBlock(channels, channels),
        )

    def forward(self, x: Map) -> Map:
        """[B C h w] -> [B C h w]."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Resample(nn.Module):
    """Half of the height and width, or twice of it."""

    def __init__(self, channels: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if halve else conv(channels, channels)

    def forward(self, x: Map) -> Map:
        """Halving pads right and bottom only; doubling repeats pixels."""
        x = functional.pad(x, (0, 1, 0, 1)) if self.halve else functional.interpolate(x, scale_factor=2, mode="nearest")
        out: Tensor = self.conv(x)
        return out


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where there is any, then the change of resolution."""

    def __init__(self, before: int, after: int, blocks: int, attends: bool, resample: str = "") -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(after if j else before, after) for j in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(after) for _ in range(blocks if attends else 0))
        self.resample = resample
        if resample:
            self.add_module(resample, Resample(after, resample == "downsample"))

    def forward(self, x: Map) -> Map:
        """[B before h w] -> [B after h' w']."""
        for j, block in enumerate(self.block):
            x = block(x)
            x = self.attn[j](x) if self.attn else x
        return self.get_submodule(self.resample)(x) if self.resample else x


class Encoder(nn.Module):
    """Pixels -> the latents that `quant_conv` brings to the codes' width."""

    def __init__(self, spec: VQGAN, channels: int) -> None:
        super().__init__()
        widths = [spec.width, *(spec.width * m for m in spec.multipliers)]
        self.conv_in = conv(channels, spec.width)
        last = len(spec.multipliers) - 1
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], spec.blocks, spec.attends(i), "downsample" if i < last else "")
            for i in range(last + 1)
        )
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), conv(widths[-1], spec.latent)

    def forward(self, x: Map) -> Map:
        """[B C H W] in [-1, 1] -> [B latent h w]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    """Latents -> pixels. `up` is numbered by resolution, the finest first, and run from its end."""

    def __init__(self, spec: VQGAN, channels: int) -> None:
        super().__init__()
        widths = [spec.width * m for m in spec.multipliers]
        self.conv_in = conv(spec.latent, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(before, after, spec.blocks + 1, spec.attends(i), "upsample" if i else "")
            for i, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out, self.conv_out = norm(widths[0]), conv(widths[0], channels)

    def forward(self, z: Map) -> Map:
        """[B latent h w] -> [B C H W], in [-1, 1] up to what the network oversteps."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return out


class Quantizer(nn.Module):
    """The codebook."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)


class VQGANTokenizer(Tokenizer):
    """The networks of `VQGAN`."""

    def __init__(self, spec: VQGAN, image: ImageShape) -> None:
        super().__init__()
        self.image, self.shape, self.normalized = image, spec.token_shape(image), spec.normalized
        self.encoder, self.decoder = Encoder(spec, image.C), Decoder(spec, image.C)
        self.quantize = Quantizer(spec.codebook, spec.dim)
        self.quant_conv = conv(spec.latent, spec.dim, 1)
        self.post_quant_conv = conv(spec.dim, spec.latent, 1)

    def codes(self) -> Float[Tensor, "V dim"]:
        """The codebook, as latents are compared with it and as it is decoded."""
        codes = self.quantize.embedding.weight
        return functional.normalize(codes, dim=-1) if self.normalized else codes

    def latents(self, img: Image) -> Float[Tensor, "B L dim"]:
        """The encoder's outputs of pixels in [-1, 1], in fp32."""
        z = wide(self.quant_conv(self.encoder(img)).flatten(2).transpose(1, 2))
        return functional.normalize(z, dim=-1) if self.normalized else z

    def encode(self, img: Image) -> Tokens:
        """The nearest codes [B L 1]."""
        if tuple(img.shape[1:]) != tuple(self.image):
            raise ValueError(f"images {tuple(img.shape)}, but the tokenizer was built for {tuple(self.image)}")
        z = self.latents(2 * img - 1)
        return nearest_code(z.flatten(0, 1), self.codes()).view(len(z), -1, 1)

    def decode(self, tokens: Tokens, cond: Cond | None = None) -> Image:
        """Images of token ids in [0, V). V, which a student draws where the mask is a class, is read as V - 1, as the
        public code does."""
        return self.shown(functional.embedding(tokens[..., 0].clamp(max=self.shape.V - 1), self.codes()))

    def decode_soft(self, probs: Probs, cond: Cond | None = None) -> Image:
        """Images of the expected codes sum_v p_v C_v; differentiable in `probs`."""
        return self.shown(self.expected(probs))

    def expected(self, probs: Probs) -> Float[Tensor, "B L dim"]:
        """Expected codes, in the codebook's precision; a mask's probability is the last code's, as in `decode`."""
        codes, p = self.codes(), probs[:, :, 0]
        codes = codes if p.shape[-1] == self.shape.V else torch.cat([codes, codes[-1:]])
        with full_precision(probs.device):
            return p.to(codes.dtype) @ codes

    def shown(self, z: Float[Tensor, "B L dim"]) -> Image:
        """Images in [0, 1] of latents."""
        return ((self.pixels(z) + 1) / 2).clamp(0, 1)

    def pixels(self, z: Float[Tensor, "B L dim"]) -> Image:
        """The decoder's output, about [-1, 1] and not clamped, in fp32."""
        grid = z.transpose(1, 2).reshape(len(z), -1, self.shape.rows, self.shape.cols)
        return wide(self.decoder(self.post_quant_conv(grid)))
