"""TA-TiTok (VQ): a picture as a row of tokens, decoded with the help of its caption (arXiv 2501.07730)."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Annotated, ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, ImageShape, Tokenizer, TokenShape
from softdimo.math.precision import wide
from softdimo.shapes import Embedding, Image, Probs, Tokens
from softdimo.spec import Settings
from softdimo.weights import Published, Shapes, count
from softdimo_plugins.encodings import encoding
from softdimo_plugins.layers import SelfAttention, full_precision, soft_rows
from softdimo_plugins.public import PublicSpec, same_heads
from softdimo_plugins.tokenizers.codebook import nearest_code

EPS = 1e-5
"""Of every norm."""
READER = "the tokenizer `tatitok`"
TEXT = "decoder_states"
"""The encoding of the prompt that pictures are decoded with."""


def sizes(shapes: Shapes) -> dict[str, int]:
    """Settings that the weights show."""
    codes, dim = shapes["quantize.embedding.weight"]
    out = {
        "codebook": codes,
        "dim": dim,
        "tokens": shapes["latent_tokens"][0],
        "text_width": shapes["decoder.text_guidance_proj.weight"][1],
        "text_length": shapes["decoder.text_guidance_positional_embedding"][0],
        "encoder.patch": shapes["encoder.patch_embed.weight"][2],
    }
    for side in ("encoder", "decoder"):
        slots, width = shapes[f"{side}.positional_embedding"]
        depth = count(shapes, rf"{side}\.transformer\.(\d+)\.")
        out |= {f"{side}.width": width, f"{side}.depth": depth, f"patches of the {side}'s images": slots - 1}
    return out


class Tower(Settings):
    """A vision transformer. The public sizes, as width, depth, heads: small 512, 8, 8; base 768, 12, 12; large 1024,
    24, 16."""

    width: Annotated[int, Field(ge=8)] = 768
    """Width of the sequence."""
    depth: Annotated[int, Field(ge=1)] = 12
    """Blocks."""
    heads: Annotated[int, Field(ge=1)] = 12
    """Attention heads; they divide the width. The weights do not show them."""
    patch: Annotated[int, Field(ge=1)] = 16
    """Side of the square patches of pixels."""


class TATiTok(PublicSpec):
    """Transformers as encoder and decoder, and one learned codebook. Decoding attends to the encoded prompt.

    The text encoder gives `decoder_states` [B text_length text_width]. The defaults are those of the public weights
    with 128 tokens (BL128, VQ).
    """

    published: ClassVar[Published] = Published(
        "TA-TiTok VQ",
        sizes,
        renames=((r"\.attn\.in_proj_", ".attn.in_proj."),),
        beside=("quantize.embed_prob",),
    )
    public_heads: ClassVar[dict[tuple[int, int], int]] = {(512, 8): 8, (768, 12): 12, (1024, 24): 16}
    encoder: Tower = Tower()
    """Pictures to latents."""
    decoder: Tower = Tower(width=1024, depth=24, heads=16)
    """Codes and text to pictures."""
    tokens: Annotated[int, Field(ge=1)] = 128
    """Tokens of a picture: a sequence, not a grid."""
    codebook: Annotated[int, Field(ge=2)] = 8192
    """Codes V."""
    dim: Annotated[int, Field(ge=1)] = 64
    """Numbers per code."""
    text_width: Annotated[int, Field(ge=1)] = 768
    """Width of the text encoder's `decoder_states`."""
    text_length: Annotated[int, Field(ge=1)] = 77
    """Their length."""

    def token_shape(self, image: ImageShape) -> TokenShape:
        """Shape of the tokens of such images, without building anything; RecipeError if there is none."""
        name, patches = self.use or "tatitok", (self.encoder.patch, self.decoder.patch)
        if image.H != image.W or any(image.H % patch for patch in patches):
            raise RecipeError(
                f"{name} takes square images whose side its patches divide ({patches[0]}, {patches[1]}); these are "
                f"{image.H} x {image.W}"
            )
        return TokenShape(1, self.tokens, 1, self.codebook)

    def build(self, context: Context) -> TATiTokTokenizer:
        """The tokenizer for the images of `context`, with fresh weights."""
        for side, tower in self._towers():
            if tower.width % tower.heads:
                raise RecipeError(f"{side}.heads: {tower.heads} does not divide {side}.width: {tower.width}")
        return TATiTokTokenizer(self, context.image)

    def smoke(self) -> Self:
        """Two blocks on either side, with random weights instead of a file's; all else keeps its size."""
        few = {side: tower.model_copy(update={"depth": min(2, tower.depth)}) for side, tower in self._towers()}
        return super().smoke().model_copy(update=few)

    def _towers(self) -> tuple[tuple[str, Tower], ...]:
        return ("encoder", self.encoder), ("decoder", self.decoder)

    def load_weights(self, module: nn.Module, path: Path) -> None:
        """As for every published network; WeightsError also where towers of a public size have other heads."""
        for side, tower in self._towers():
            size = (tower.width, tower.depth)
            told = self.public_heads.get(size, tower.heads)
            same_heads(self.published.model, f"{side}.heads", size, tower.heads, told, path)
        super().load_weights(module, path)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width, EPS), SelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width, EPS)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=nn.GELU(), c_proj=nn.Linear(4 * width, width))
        )

    def forward(self, x: Embedding) -> Embedding:
        """[B L D] -> [B L D]."""
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Trunk(nn.Module):
    """What both towers have: a class token and patches with positions, latents with positions, norms, blocks."""

    def __init__(self, tower: Tower, image: ImageShape, tokens: int) -> None:
        super().__init__()
        self.tower, self.channels, self.side = tower, image.C, image.H // tower.patch
        D, scale = tower.width, tower.width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(1, D))
        self.positional_embedding = nn.Parameter(scale * torch.randn(self.side**2 + 1, D))
        self.latent_token_positional_embedding = nn.Parameter(scale * torch.randn(tokens, D))
        self.ln_pre, self.ln_post = nn.LayerNorm(D, EPS), nn.LayerNorm(D, EPS)
        self.transformer = nn.ModuleList(Block(D, tower.heads) for _ in range(tower.depth))

    def slots(self, patches: Embedding) -> Embedding:
        """The class token and the patches, with their positions: [B P D] -> [B P+1 D]."""
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return torch.cat([first, patches], 1) + self.positional_embedding

    def run(self, x: Embedding) -> Embedding:
        """The blocks, between them and the outputs no norm yet."""
        x = self.ln_pre(x)
        for block in self.transformer:
            x = block(x)
        return x


class Encoder(Trunk):
    """Pictures -> latents, which are what the latent tokens become."""

    def __init__(self, spec: TATiTok, image: ImageShape) -> None:
        super().__init__(spec.encoder, image, spec.tokens)
        D, patch = spec.encoder.width, spec.encoder.patch
        self.patch_embed = nn.Conv2d(image.C, D, patch, stride=patch)
        self.conv_out = nn.Conv2d(D, spec.dim, 1)

    def forward(self, img: Image, latent_tokens: Float[Tensor, "tokens D"]) -> Float[Tensor, "B dim 1 tokens"]:
        """Of pictures in [0, 1]."""
        x = self.slots(self.patch_embed(img).flatten(2).transpose(1, 2))
        latents = latent_tokens + self.latent_token_positional_embedding
        x = self.run(torch.cat([x, latents.to(x.dtype).expand(len(x), -1, -1)], 1))
        z: Tensor = self.conv_out(self.ln_post(x[:, -len(latents) :]).transpose(1, 2)[:, :, None])
        return z


class Pixels(nn.Module):
    """Patches [B p*p*C h w], colors fastest, then columns, then rows -> pixels [B C h*p w*p]."""

    def __init__(self, patch: int, channels: int) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels

    def forward(self, x: Float[Tensor, "B F h w"]) -> Image:
        """Only moves numbers."""
        B, _, h, w = x.shape
        pixels = x.view(B, self.patch, self.patch, self.channels, h, w).permute(0, 3, 4, 1, 5, 2)
        return pixels.flatten(4, 5).flatten(2, 3)


class Decoder(Trunk):
    """Codes and the encoded prompt -> pictures, which are what mask tokens become."""

    def __init__(self, spec: TATiTok, image: ImageShape) -> None:
        super().__init__(spec.decoder, image, spec.tokens)
        D, patch, scale = spec.decoder.width, spec.decoder.patch, spec.decoder.width**-0.5
        self.mask_token = nn.Parameter(scale * torch.randn(1, 1, D))
        self.decoder_embed = nn.Linear(spec.dim, D)
        self.text_guidance_proj = nn.Linear(spec.text_width, D)
        self.text_guidance_positional_embedding = nn.Parameter(scale * torch.randn(spec.text_length, D))
        self.ffn = nn.Sequential(nn.Conv2d(D, patch**2 * image.C, 1), Pixels(patch, image.C))
        self.conv_out = nn.Conv2d(image.C, image.C, 3, padding=1)
        nn.init.constant_(
            self.conv_out.get_parameter("bias"), 0.5
        )  # fresh pictures are gray, in the middle of what is not clamped

    def forward(self, z: Float[Tensor, "B tokens dim"], text: Float[Tensor, "B T F"]) -> Image:
        """[0, 1] up to what the network oversteps."""
        latents = self.decoder_embed(z) + self.latent_token_positional_embedding
        words = self.text_guidance_proj(text) + self.text_guidance_positional_embedding
        patches = self.side**2
        slots = self.slots(self.mask_token.to(latents.dtype).expand(len(z), patches, -1))
        x = self.run(torch.cat([slots, latents, words], 1))
        x = self.ln_post(x[:, 1 : patches + 1]).transpose(1, 2).unflatten(2, (self.side, self.side))
        img: Tensor = self.conv_out(self.ffn(x))
        return img


class Quantizer(nn.Module):
    """The codebook."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)


class TATiTokTokenizer(Tokenizer):
    """The networks of `TATiTok`. Codes are compared and decoded as they are stored."""

    def __init__(self, spec: TATiTok, image: ImageShape) -> None:
        super().__init__()
        self.image, self.shape, self.text = image, spec.token_shape(image), (spec.text_length, spec.text_width)
        self.encoder, self.decoder = Encoder(spec, image), Decoder(spec, image)
        self.latent_tokens = nn.Parameter(spec.encoder.width**-0.5 * torch.randn(spec.tokens, spec.encoder.width))
        self.quantize = Quantizer(spec.codebook, spec.dim)

    def latents(self, img: Image) -> Float[Tensor, "B tokens dim"]:
        """The encoder's outputs of pixels in [0, 1], in fp32."""
        return wide(self.encoder(img, self.latent_tokens))[:, :, 0].transpose(1, 2)

    def encode(self, img: Image) -> Tokens:
        """The nearest codes [B tokens 1]."""
        if tuple(img.shape[1:]) != tuple(self.image):
            raise ValueError(f"images {tuple(img.shape)}, but the tokenizer was built for {tuple(self.image)}")
        z = self.latents(img)
        with full_precision(img.device):
            return nearest_code(z.flatten(0, 1), wide(self.quantize.embedding.weight)).view(len(z), -1, 1)

    def decode(self, tokens: Tokens, cond: Cond | None = None) -> Image:
        """Images of token ids in [0, V). RecipeError where `cond` lacks `decoder_states`."""
        return self.pixels(functional.embedding(tokens[..., 0], self.quantize.embedding.weight), cond).clamp(0, 1)

    def decode_soft(self, probs: Probs, cond: Cond | None = None) -> Image:
        """Images of the expected codes C^T p, differentiable in `probs`; RecipeError as in `decode`."""
        return self.pixels(self.expected(probs), cond).clamp(0, 1)

    def expected(self, probs: Probs) -> Float[Tensor, "B tokens dim"]:
        """Expected codes, in the codebook's precision."""
        return soft_rows(self.quantize.embedding.weight, probs[:, :, 0], None, self.shape.V)

    def pixels(self, z: Float[Tensor, "B tokens dim"], cond: Cond | None) -> Image:
        """The decoder's output of codes, not clamped, in fp32."""
        return wide(self.decoder(z, encoding(cond, TEXT, self.text, READER).to(z.dtype)))
