"""MaskBit's tokenizer: a convolutional autoencoder whose code is the signs of its latent (arXiv 2409.16211)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, ImageShape, Tokenizer, TokenShape
from softdimo.math.precision import wide
from softdimo.shapes import Image, Probs, Tokens
from softdimo.weights import Published, Shapes, count
from softdimo_plugins.bits import classes, expected, signs
from softdimo_plugins.public import PublicPyramid

NORM_GROUPS, EPS = 32, 1e-6
"""Of every group norm."""
Latent = Float[Tensor, "B bits h w"]


def sizes(shapes: Shapes) -> dict[str, int]:
    """Settings that the weights show."""
    return {
        "bits": shapes["encoder.conv_out.weight"][0],
        "width": shapes["encoder.conv_in.weight"][0],
        "channels of the images": shapes["encoder.conv_in.weight"][1],
        "number of multipliers": count(shapes, r"encoder\.down\.(\d+)\."),
        "blocks": count(shapes, r"encoder\.mid\.res_blocks\.(\d+)\."),
    }


class MaskBitLFQ(PublicPyramid):
    """Convolutions and residual blocks without attention; K bits a token, in G groups of V = 2^(K/G) classes."""

    published: ClassVar[Published] = Published(
        "the MaskBit tokenizer", sizes, beside=("quantize.bits_to_indices", "quantize.codebook")
    )
    bits: Annotated[int, Field(ge=1)] = 14
    """Bits K per token: 10, 12, 14, 16 or 18 in the public weights."""
    groups: Annotated[int, Field(ge=1)] = 2
    """Groups G, each masked and predicted on its own. The tokenizer's weights do not depend on it."""
    width: Annotated[int, Field(ge=NORM_GROUPS, multiple_of=NORM_GROUPS)] = 128
    """Channels at the finest resolution."""
    multipliers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 1, 2, 2, 4)
    """Channels at each resolution in multiples of `width`, finest first; each next one is half as large."""
    blocks: Annotated[int, Field(ge=1)] = 2
    """Residual blocks at each resolution, and in the middle."""
    resample: bool = True
    """Halve and double with convolutions, as the public weights do; otherwise average and repeat pixels."""

    def token_shape(self, image: ImageShape) -> TokenShape:
        """Shape of the tokens of such images, without building anything; RecipeError if there is none."""
        if self.bits % self.groups:
            raise RecipeError(f"groups: {self.groups} does not divide bits: {self.bits}")
        patch = 2 ** (len(self.multipliers) - 1)
        if image.H % patch or image.W % patch:
            name = self.use or "maskbit_lfq"
            raise RecipeError(f"{name} needs sides that are multiples of {patch}; images are {image.H} x {image.W}")
        return TokenShape(image.H // patch, image.W // patch, self.groups, 2 ** (self.bits // self.groups))

    def build(self, context: Context) -> MaskBitTokenizer:
        """The tokenizer for the images of `context`, with fresh weights."""
        return MaskBitTokenizer(self, context.image)


class SameConv(nn.Conv2d):
    """Convolution with ceil(n / stride) outputs: where the padding is odd, right and bottom get the larger half."""

    def forward(self, x: Tensor) -> Tensor:
        """[B C h w] -> [B C' ceil(h/s) ceil(w/s)]."""
        pad: list[int] = []
        for n, k, s in zip(reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pad += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, pad) if any(pad) else x)


def norm(channels: int) -> nn.GroupNorm:
    """Group norm with the published constants."""
    return nn.GroupNorm(NORM_GROUPS, channels, EPS)


class ResBlock(nn.Module):
    """h = conv(act(norm(conv(act(norm(x)))))); x + h, or where the widths differ W h + h: x is not added then."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), SameConv(before, after, 3, bias=False)
        self.norm2, self.conv2 = norm(after), SameConv(after, after, 3, bias=False)
        self.nin_shortcut = None if before == after else SameConv(after, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B before h w] -> [B after h w]."""
        h: Tensor = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class Level(nn.Module):
    """The residual blocks of one resolution."""

    def __init__(self, before: int, after: int, blocks: int) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(ResBlock(after if j else before, after) for j in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """[B before h w] -> [B after h w]."""
        for block in self.res_blocks:
            x = block(x)
        return x


class Down(Level):
    """A resolution, then half of it."""

    def __init__(self, before: int, after: int, blocks: int, resample: bool) -> None:
        super().__init__(before, after, blocks)
        self.down_conv = SameConv(after, after, 3, 2) if resample else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B before h w] -> [B after ceil(h/2) ceil(w/2)]."""
        out: Tensor = self.down_conv(super().forward(x))
        return out


class Up(Level):
    """A resolution, then twice of it."""

    def __init__(self, before: int, after: int, blocks: int, resample: bool) -> None:
        super().__init__(before, after, blocks)
        self.upsample_conv = SameConv(after, after, 3) if resample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B before h w] -> [B after 2h 2w]."""
        out: Tensor = self.upsample_conv(functional.interpolate(super().forward(x), scale_factor=2, mode="nearest"))
        return out


class Encoder(nn.Module):
    """Images -> latents, whose signs are the bits."""

    def __init__(self, spec: MaskBitLFQ, channels: int) -> None:
        super().__init__()
        widths = [spec.width * m for m in spec.multipliers]
        self.conv_in = SameConv(channels, spec.width, 3, bias=False)
        steps = list(zip([spec.width, *widths[:-1]], widths, strict=True))
        self.down = nn.ModuleList(Down(a, b, spec.blocks, spec.resample) for a, b in steps[:-1])
        self.down.append(Level(*steps[-1], spec.blocks))
        self.mid = Level(widths[-1], widths[-1], spec.blocks)
        self.norm_out, self.conv_out = norm(widths[-1]), SameConv(widths[-1], spec.bits, 1)

    def forward(self, img: Image) -> Latent:
        """[B C H W] in [0, 1] -> [B bits h w]."""
        x = self.conv_in(img)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    """Codes -> pixels; `up` begins at the coarsest resolution."""

    def __init__(self, spec: MaskBitLFQ, channels: int) -> None:
        super().__init__()
        widths = [spec.width * m for m in reversed(spec.multipliers)]
        self.conv_in = SameConv(spec.bits, widths[0], 3)
        self.mid = Level(widths[0], widths[0], spec.blocks)
        steps = list(zip([widths[0], *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(Up(a, b, spec.blocks, spec.resample) for a, b in steps[:-1])
        self.up.append(Level(*steps[-1], spec.blocks))
        self.norm_out, self.conv_out = norm(widths[-1]), SameConv(widths[-1], channels, 3)

    def forward(self, code: Latent) -> Image:
        """[B bits h w] in [-1, 1] -> [B C H W], not clamped."""
        x = self.mid(self.conv_in(code))
        for level in self.up:
            x = level(x)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return out


class MaskBitTokenizer(Tokenizer):
    """The networks of `MaskBitLFQ`. Channel k of the latent is bit k of the token: group 0 has the lowest ones."""

    codes: Tensor

    def __init__(self, spec: MaskBitLFQ, image: ImageShape) -> None:
        super().__init__()
        self.image, self.shape = image, spec.token_shape(image)
        self.encoder, self.decoder = Encoder(spec, image.C), Decoder(spec, image.C)
        self.register_buffer("codes", signs(spec.bits // spec.groups), persistent=False)

    def encode(self, img: Image) -> Tokens:
        """Token ids in [0, V); a latent of 0 is the bit 0."""
        if tuple(img.shape[1:]) != tuple(self.image):
            raise ValueError(f"images {tuple(img.shape)}, but the tokenizer was built for {tuple(self.image)}")
        positive = self.encoder(img).flatten(2).transpose(1, 2) > 0
        return classes(positive.unflatten(-1, (self.shape.G, -1)))

    def decode(self, tokens: Tokens, cond: Cond | None = None) -> Image:
        """Images of token ids in [0, V)."""
        return self.pixels(self.codes[tokens].flatten(2)).clamp(0, 1)

    def decode_soft(self, probs: Probs, cond: Cond | None = None) -> Image:
        """Images of the expected bits, which are linear in `probs`."""
        return self.pixels(expected(self.codes, probs)).clamp(0, 1)

    def pixels(self, code: Float[Tensor, "B L bits"]) -> Image:
        """The decoder's output before it is clamped, in fp32."""
        grid = code.transpose(1, 2).reshape(len(code), -1, self.shape.rows, self.shape.cols)
        return wide(self.decoder(grid))
