"""A small convolutional classifier: feature network of metrics, judge, or reward, trained by a recipe in seconds."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.kinds import Cond, Context, Features, ImageShape, Logs
from softdimo.math.precision import wide
from softdimo.shapes import Image
from softdimo.spec import Fraction, NetworkSpec, NonNegative
from softdimo_plugins.layers import ChannelsLast

Count = Annotated[int, Field(ge=1)]
LUMINANCE = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue."""


def to_channels(img: Image, channels: int) -> Float[Tensor, "B {channels} H W"]:
    """The same images with 1 (luminance) or 3 (repeated) channels: [B C H W] -> [B channels H W]."""
    if img.shape[1] == channels:
        return img
    if channels == 3:
        return img.expand(-1, 3, -1, -1)
    weights = torch.tensor(LUMINANCE, dtype=img.dtype, device=img.device)
    return torch.einsum("bchw,c->bhw", img, weights)[:, None]


class CNN(NetworkSpec):
    """Convolutional classifier of a data set's classes. It accepts images of any size and 1 or 3 channels.

    For honest numbers, metrics, judges and rewards each take a network of their own (another seed and another width).
    """

    width: Annotated[int, Field(ge=4)] = 16
    """Channels of the first layer; later ones have two and three times as many."""
    depth: Annotated[int, Field(ge=2)] = 4
    """Convolutions."""
    features: Annotated[int, Field(ge=2)] = 64
    """Width F of the features."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Before the features, in training."""
    label_smoothing: Fraction = 0.05
    """In training."""
    flip: bool = True
    """Train with random left-right flips; turn it off for text and digits."""
    jitter: NonNegative = 1.0
    """Strength of the random rotations (10 degrees), scalings (10 %) and shifts (5 %) of training; 0 turns them off."""
    image: tuple[Count, Count, Count] | None = None
    """Channels, height and width that it looks at, and brings images to; those of the data's images when null."""

    def build(self, context: Context) -> CNNFeatures:
        """The network for the images and classes of `context`, with fresh weights."""
        image = context.image if self.image is None else ImageShape(*self.image)
        return CNNFeatures(self, image, len(context.classes))


class CNNFeatures(Features):
    """The network of `CNN`: convolutions with batch norm down to at most 4 x 4 cells, then two linear layers."""

    CELLS = 4

    def __init__(self, spec: CNN, image: ImageShape, classes: int) -> None:
        super().__init__()
        self.spec, self.image, self.width = spec, image, spec.features
        size, before = (image.H, image.W), image.C
        layers: list[nn.Module] = []
        for i in range(spec.depth):
            after = min(i + 1, 3) * spec.width
            halve = i != 2 and min(size) > (15 if i == 0 else self.CELLS)
            layers.append(nn.Conv2d(before, after, 3, 2 if halve and i != 1 else 1, 1, bias=False))
            layers += [*([] if i else [ChannelsLast()]), nn.BatchNorm2d(after), nn.ReLU()]
            if halve:
                layers += [nn.MaxPool2d(2, ceil_mode=True)] if i == 1 else []
                size = (-(-size[0] // 2), -(-size[1] // 2))
            before = after
        cells = (min(size[0], self.CELLS), min(size[1], self.CELLS))
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(cells), nn.Flatten())
        self.narrow = nn.Linear(before * cells[0] * cells[1], spec.features)
        self.head = nn.Linear(spec.features, classes)

    def cells(self, img: Image) -> Float[Tensor, "B K"]:
        """The trunk's output; images are brought to the channels and size that the network was built for."""
        img = to_channels(img, self.image.C)
        if img.shape[2:] != self.image[1:]:
            img = functional.interpolate(img, self.image[1:], mode="bilinear", antialias=True)
        out: Tensor = self.trunk(2 * img - 1)
        return out

    def forward(self, img: Image) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B K"]]:
        """Features [B F] >= 0 and class logits [B K], in fp32."""
        features = functional.relu(self.narrow(self.cells(img)))
        return wide(features), wide(self.head(features))

    def loss(self, img: Image, cond: Cond, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """Cross-entropy of the labels under augmentation, dropout and label smoothing."""
        cells = self.cells(self.augment(img, rng))
        keep = torch.rand(cells.shape, generator=rng, device=rng.device).to(cells.device) >= self.spec.dropout
        features = functional.relu(self.narrow(cells * keep / (1 - self.spec.dropout)))
        logits = wide(self.head(features))
        loss = functional.cross_entropy(logits, cond.labels, label_smoothing=self.spec.label_smoothing)
        return loss, {"accuracy": (logits.argmax(-1) == cond.labels).float().mean()}

    def augment(self, img: Image, rng: torch.Generator) -> Image:
        """Random flips and small affine maps, one for each image."""
        u = torch.rand(5, len(img), generator=rng, device=rng.device).to(img.device)
        if self.spec.flip:
            img = torch.where((u[0] < 0.5)[:, None, None, None], img.flip(-1), img)
        if not self.spec.jitter:
            return img
        angle, scale, right, down = (2 * u[1:] - 1) * self.spec.jitter
        angle, scale = angle * 0.175, 1 + scale * 0.1
        rows = [
            scale * angle.cos(),
            -scale * angle.sin(),
            right * 0.1,
            scale * angle.sin(),
            scale * angle.cos(),
            down * 0.1,
        ]
        grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(img.shape), align_corners=False)
        return functional.grid_sample(img, grid, padding_mode="border", align_corners=False)
