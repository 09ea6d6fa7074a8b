"""Small convolutional tokenizers that a recipe can train in seconds: a learned codebook, and lookup-free bits."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import Cond, Context, ImageShape, Logs, Tokenizer, TokenShape
from softdimo.math.precision import wide
from softdimo.shapes import Image, Probs, Tokens
from softdimo.spec import Fraction, NetworkSpec, NonNegative
from softdimo_plugins.bits import classes, signs
from softdimo_plugins.layers import ChannelsLast, full_precision
from softdimo_plugins.tokenizers.codebook import Codebook


class ConvSpec(NetworkSpec):
    """What the convolutional tokenizers share."""

    patch: Literal[1, 2, 4, 8, 16] = 4
    """Pixels a token covers, each way: 28 x 28 images with patch 4 are 7 x 7 tokens."""
    encoder: Literal["strided", "patches"] = "strided"
    """Convolutions of stride 2 that see beyond the patch (better images), or the patch alone (easier to predict)."""
    width: Annotated[int, Field(ge=4)] = 24
    """Channels at the finest resolution; the decoder's coarse layers have three times as many."""
    pretrain: Fraction = 0.1
    """First part of the training without quantization, so that the codebook starts from latents that mean something."""
    reconstruction: Literal["bce", "mse", "l1"] = "bce"
    """Pixel loss: cross-entropy (silhouettes, digits), squared or absolute error."""

    def token_shape(self, image: ImageShape) -> TokenShape:
        """Shape of the tokens of such images, without building anything; RecipeError if there is none."""
        if image.C not in (1, 3):
            raise RecipeError(f"{self.use or 'the tokenizer'} takes images of 1 or 3 channels, the data has {image.C}")
        if image.H % self.patch or image.W % self.patch:
            fitting = [p for p in (1, 2, 4, 8, 16) if not (image.H % p or image.W % p)]
            raise RecipeError(
                f"patch: {self.patch} does not divide images of {image.H} x {image.W}; "
                f"it can be {' or '.join(map(str, fitting))}"
            )
        return TokenShape(image.H // self.patch, image.W // self.patch, *self._vocabulary())

    def _vocabulary(self) -> tuple[int, int]:
        """G and V."""
        raise NotImplementedError


class ConvVQ(ConvSpec):
    """Convolutional autoencoder with a learned codebook: one token of V classes a patch (VQ-VAE)."""

    codebook: Annotated[int, Field(ge=2)] = 128
    """Codes V."""
    dim: Annotated[int, Field(ge=1)] = 4
    """Numbers per code."""
    commitment: NonNegative = 0.25
    """Weight of the pull of the encoder's outputs towards their codes."""

    def _vocabulary(self) -> tuple[int, int]:
        return 1, self.codebook

    def build(self, context: Context) -> ConvVQTokenizer:
        """The tokenizer for the images of `context`, with fresh weights."""
        return ConvVQTokenizer(self, context.image)


class ConvLFQ(ConvSpec):
    """Convolutional autoencoder with lookup-free bits: K signs a patch, in G groups of V = 2^(K/G) classes."""

    bits: Annotated[int, Field(ge=1)] = 10
    """Bits K per token position."""
    groups: Annotated[int, Field(ge=1)] = 2
    """Groups G, each masked and predicted on its own."""
    entropy: NonNegative = 0.02
    """Weight of the entropy loss: sure about every patch, all classes used over the batch."""

    def _vocabulary(self) -> tuple[int, int]:
        if self.bits % self.groups:
            raise RecipeError(f"groups: {self.groups} does not divide bits: {self.bits}")
        return self.groups, 2 ** (self.bits // self.groups)

    def build(self, context: Context) -> ConvLFQTokenizer:
        """The tokenizer for the images of `context`, with fresh weights."""
        return ConvLFQTokenizer(self, context.image)


def encoder(channels: int, width: int, dim: int, halvings: int, strided: bool) -> nn.Sequential:
    """[B channels H W] -> [B dim H/2^halvings W/2^halvings]; each output sees its patch only, unless `strided`.

    Batch norm at the end keeps every number of the latent at mean 0 and variance 1: codes spread and bits are balanced.
    """
    layers: list[nn.Module] = []
    if strided:
        before = channels
        for i in range(halvings):
            after = min(2, i + 1) * width
            layers += [nn.Conv2d(before, after, 4, 2, 1), *([] if i else [ChannelsLast()]), nn.SiLU()]
            before = after
    else:
        layers += [nn.Conv2d(channels, 2 * width, 2**halvings, 2**halvings), ChannelsLast(), nn.SiLU()]
        before = 2 * width
    return nn.Sequential(
        *layers,
        nn.Conv2d(before, 2 * width, 1),
        nn.SiLU(),
        nn.Conv2d(2 * width, dim, 1),
        nn.BatchNorm2d(dim, affine=False),
    )


def decoder(channels: int, width: int, dim: int, doublings: int) -> nn.Sequential:
    """[B dim h w] -> [B channels h 2^doublings w 2^doublings]."""
    layers: list[nn.Module] = [nn.Conv2d(dim, 3 * width, 3, 1, 1), nn.SiLU(), nn.Conv2d(3 * width, 3 * width, 3, 1, 1)]
    before = 3 * width
    for i in reversed(range(1, doublings)):
        after = min(3, 2 ** (i - 1)) * width
        layers += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, 2, 1)]
        before = after
    last = nn.ConvTranspose2d(before, channels, 4, 2, 1) if doublings else nn.Conv2d(before, channels, 1)
    return nn.Sequential(*layers, nn.SiLU(), last)


class ConvTokenizer(Tokenizer):
    """Encoder, a table of codes, decoder. Tokens are decoded as one-hot probabilities: one code path for both."""

    def __init__(self, spec: ConvSpec, image: ImageShape, dim: int) -> None:
        super().__init__()
        self.spec, self.image, self.shape, self.dim = spec, image, spec.token_shape(image), dim
        halvings = spec.patch.bit_length() - 1
        self.encoder = encoder(image.C, spec.width, dim, halvings, spec.encoder == "strided")
        self.decoder = decoder(image.C, spec.width, dim, halvings)

    @abstractmethod
    def table(self) -> Float[Tensor, "G V d"]:
        """Codes of each group; the latent of a position is the groups' codes one after another."""

    @abstractmethod
    def quantize(self, z: Float[Tensor, "B L dim"]) -> Tokens:
        """Tokens of the encoder's outputs."""

    def latents(self, img: Image) -> Float[Tensor, "B L dim"]:
        """The encoder's outputs, in fp32."""
        if tuple(img.shape[1:]) != tuple(self.image):
            raise ValueError(f"images {tuple(img.shape)}, but the tokenizer was built for {tuple(self.image)}")
        z: Tensor = wide(self.encoder(img))
        return z.flatten(2).transpose(1, 2)

    def pixels(self, z: Float[Tensor, "B L dim"]) -> Image:
        """The decoder's output before the sigmoid, in fp32."""
        grid = z.transpose(1, 2).reshape(len(z), self.dim, self.shape.rows, self.shape.cols)
        logits: Tensor = self.decoder(grid)
        return wide(logits)

    def encode(self, img: Image) -> Tokens:
        """Token ids in [0, V)."""
        return self.quantize(self.latents(img))

    def decode_soft(self, probs: Probs, cond: Cond | None = None) -> Image:
        """Images of the expected codes sum_v p_v C_v; differentiable in `probs`."""
        table = self.table()
        with full_precision(probs.device):
            z = torch.einsum("blgv,gvd->blgd", probs.to(table.dtype), table).flatten(2)
        return self.pixels(z).sigmoid()

    def decode(self, tokens: Tokens, cond: Cond | None = None) -> Image:
        """Images of token ids in [0, V)."""
        return self.decode_soft(functional.one_hot(tokens, self.shape.V).to(self.table().dtype), cond)

    def reconstruction(self, z: Tensor, img: Image) -> Tensor:
        """Pixel loss of decoding `z`."""
        logits = self.pixels(z)
        match self.spec.reconstruction:
            case "bce":
                return functional.binary_cross_entropy_with_logits(logits, img)
            case "mse":
                return functional.mse_loss(logits.sigmoid(), img)
            case "l1":
                return functional.l1_loss(logits.sigmoid(), img)


class ConvVQTokenizer(ConvTokenizer):
    """VQ-VAE (van den Oord et al. 2017) with a codebook of running means, started by k-means after the pretraining."""

    SETTLED = 0.9
    """From this part of the training on, the codes stay and only encoder and decoder move."""

    def __init__(self, spec: ConvVQ, image: ImageShape) -> None:
        super().__init__(spec, image, spec.dim)
        self.commitment = spec.commitment
        self.codebook = Codebook(spec.codebook, spec.dim)

    def table(self) -> Tensor:
        """[1 V dim]."""
        return self.codebook.codes[None]

    def quantize(self, z: Tensor) -> Tokens:
        """The nearest code."""
        ids: Tensor = self.codebook(z.flatten(0, 1))
        return ids.view(*z.shape[:2], 1)

    def loss(self, img: Image, rng: torch.Generator, progress: float) -> tuple[Tensor, Logs]:
        """Reconstruction + commitment * |z - code|^2, with the straight-through gradient."""
        z = self.latents(img)
        if progress < self.spec.pretrain:
            self.codebook.started.fill_(False)
            loss = self.reconstruction(z, img)
            return loss, {"reconstruction": loss.detach()}
        points = z.detach().flatten(0, 1)
        if not self.codebook.started:
            self.codebook.start(points, rng)
        ids = self.codebook(points)
        codes = self.codebook.codes[ids].view_as(z)
        if progress < self.SETTLED:
            self.codebook.update(points, ids, rng)
        commitment = functional.mse_loss(z, codes)
        reconstruction = self.reconstruction(z + (codes - z).detach(), img)
        usage = self.codebook.usage / self.codebook.usage.sum()
        logs: Logs = {
            "reconstruction": reconstruction.detach(),
            "commitment": commitment.detach(),
            "perplexity": torch.special.entr(usage).sum().exp(),
        }
        return reconstruction + self.commitment * commitment, logs


class ConvLFQTokenizer(ConvTokenizer):
    """Lookup-free quantization (Yu et al. 2024, MAGVIT-v2), the entropy of each group taken exactly."""

    codes: Tensor

    def __init__(self, spec: ConvLFQ, image: ImageShape) -> None:
        super().__init__(spec, image, spec.bits)
        self.entropy = spec.entropy
        self.register_buffer("codes", signs(spec.bits // spec.groups), persistent=False)

    def table(self) -> Tensor:
        """[G V bits / G], the same signs in every group; bit i of class v is (v >> i) & 1."""
        return self.codes.expand(self.shape.G, -1, -1)

    def quantize(self, z: Tensor) -> Tokens:
        """Bits z > 0, read as binary numbers."""
        return classes(self._groups(z > 0))

    def _groups(self, z: Tensor) -> Tensor:
        """[B L bits] -> [B L G bits/G]."""
        return z.reshape(*z.shape[:2], self.shape.G, -1)

    def loss(self, img: Image, rng: torch.Generator, progress: float) -> tuple[Tensor, Logs]:
        """Reconstruction + entropy * (E H(p) - H(E p)), with straight-through signs.

        p is the softmax over a group's classes of 2 z . code, i.e. independent bits of probability sigmoid(4 z).
        Batch norm already keeps |z| near 1, so that there is no commitment loss.
        """
        z = self.latents(img)
        if progress < self.spec.pretrain:
            loss = self.reconstruction(z.tanh(), img)
            return loss, {"reconstruction": loss.detach()}
        hard = torch.where(z > 0, 1.0, -1.0)
        soft = z.tanh()
        reconstruction = self.reconstruction(soft + (hard - soft).detach(), img)
        log_p = (2 * self._groups(z) @ self.codes.T).log_softmax(-1)
        p = log_p.exp()
        mean = p.mean((0, 1)).clamp(min=1e-12)  # log of it has a gradient
        sure, spread = -(p * log_p).sum(-1).mean(), -(mean * mean.log()).sum(-1)
        entropy = sure - spread.mean()
        logs: Logs = {
            "reconstruction": reconstruction.detach(),
            "perplexity": spread.detach().exp().mean(),
        }
        return reconstruction + self.entropy * entropy, logs
