"""Inception-v3 as TensorFlow published it in 2015: what FID, Inception score, precision and recall are defined on."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softdimo.errors import PluginError, WeightsError
from softdimo.kinds import Cond, Context, Features, Logs
from softdimo.math.precision import wide
from softdimo.shapes import Image
from softdimo.weights import Published, Shapes
from softdimo_plugins import imaging
from softdimo_plugins.features.cnn import to_channels
from softdimo_plugins.imaging import Rule, to_bytes, to_range
from softdimo_plugins.public import PublicSpec

FILE = "weights-inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SIZE = 299
"""Height and width that the network sees."""
UNUSED = "unused."
"""Prefix of the batch norms' counters, which play no part in evaluation; a file may have them or not."""


def _sizes(shapes: Shapes) -> dict[str, int]:
    classes, features = shapes["fc.weight"]
    return {"features": features, "classes": classes}


class Inception(PublicSpec):
    """Features: pool3 (2048); logits: 1008, without the bias of the last layer, as the Inception score's authors do.

    The layers are those of torch-fidelity's port (`inception-v3-compat`), whose weights are converted from the graph of
    2015-12-05. `weights` names that file; softdimo does not fetch it by itself. Tests compare the network with theirs
    under random weights; nobody has measured with the public file yet.
    """

    published: ClassVar[Published] = Published(
        "Inception-v3 of 2015-12-05 (torch-fidelity's port)",
        _sizes,
        renames=((r"^.*num_batches_tracked$", rf"{UNUSED}\g<0>"), (r"^(Conv2d|Mixed)_", r"trunk.\g<0>")),
        beside=(UNUSED,),
    )
    uint8: Rule = "adm"
    """How an image x in [0, 1] becomes bytes, as files of images would hold them. `truncate`: floor(255 x). `round`: to
    the nearest. `adm`: floor(127.5 (2 x - 1) + 128), the rule of guided-diffusion and Di[M]O, to the nearest as well.
    `stretch`: each image's least value becomes 0 and its greatest 255, truncated, as MaskGIT-pytorch v1.0 does before
    its FID; such numbers compare with that project's only."""
    lanczos: Annotated[int, Field(ge=1)] | None = None
    """Before that, the square in the middle is resized to this height and width by Pillow's Lanczos filter, as bytes:
    256 in GigaGAN's protocol for COCO, which real images went through too. Not at all when null."""
    resize: Literal["tf_bilinear", "legacy", "t2i_benchmark", "clean"] = "tf_bilinear"
    """To 299 x 299. `tf_bilinear` and `legacy`, as TensorFlow 1 does (output pixel i reads at i * input / 299, without
    antialiasing): torch-fidelity's arithmetic, or sampling on an affine grid, as the traced network behind clean-fid's
    `legacy_tensorflow` does; they differ by rounding alone. The others take the square in the middle and Pillow's
    bicubic filter: `t2i_benchmark` resizes bytes, and the network sees x / 127.5 - 1, as in the package T2IBenchmark
    that Di[M]O's FID of COCO is by; `clean` resizes floats, and clips them, as clean-fid's `clean` does."""

    def build(self, context: Context) -> InceptionFeatures:
        """The network, with fresh weights. WeightsError where the recipe names none, PluginError without the extra."""
        if not self.ready():
            raise WeightsError(
                f"the features `{self.use or 'inception'}` need their public weights: fetch {ADDRESS} and name the "
                f"file, `weights: path/to/{FILE}` (`fresh: true` takes random ones, for trials only)"
            )
        return InceptionFeatures(self)


class InceptionFeatures(Features):
    """The network of `Inception`. Gradients to the images pass straight through the bytes that they become."""

    width = 2048

    def __init__(self, spec: Inception) -> None:
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as port
        except ImportError as error:
            raise PluginError(
                f"the features `inception` need torch-fidelity ({error}): run `pip install 'softdimo[fid]'`"
            ) from error
        super().__init__()
        self.spec = spec
        conv = port.BasicConv2d
        self.trunk = nn.Sequential(OrderedDict[str, nn.Module](
            Conv2d_1a_3x3=conv(3, 32, kernel_size=3, stride=2),
            Conv2d_2a_3x3=conv(32, 32, kernel_size=3),
            Conv2d_2b_3x3=conv(32, 64, kernel_size=3, padding=1),
            MaxPool_1=nn.MaxPool2d(3, 2),
            Conv2d_3b_1x1=conv(64, 80, kernel_size=1),
            Conv2d_4a_3x3=conv(80, 192, kernel_size=3),
            MaxPool_2=nn.MaxPool2d(3, 2),
            Mixed_5b=port.InceptionA(192, pool_features=32),
            Mixed_5c=port.InceptionA(256, pool_features=64),
            Mixed_5d=port.InceptionA(288, pool_features=64),
            Mixed_6a=port.InceptionB(288),
            Mixed_6b=port.InceptionC(768, channels_7x7=128),
            Mixed_6c=port.InceptionC(768, channels_7x7=160),
            Mixed_6d=port.InceptionC(768, channels_7x7=160),
            Mixed_6e=port.InceptionC(768, channels_7x7=192),
            Mixed_7a=port.InceptionD(768),
            Mixed_7b=port.InceptionE_1(1280),
            Mixed_7c=port.InceptionE_2(2048),
            pool3=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        ))  # fmt: skip
        self.fc = nn.Linear(self.width, 1008)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):  # always in evaluation mode, so nothing is counted
                module.num_batches_tracked, module.track_running_stats = None, False

    def settings(self) -> dict[str, str]:
        """The rules before the network."""
        first = {} if self.spec.lanczos is None else {"lanczos": str(self.spec.lanczos)}
        return {"uint8": self.spec.uint8, "resize": self.spec.resize} | first

    def loss(self, img: Image, cond: Cond, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """None: this network is as it was published."""
        raise NotImplementedError("inception cannot be trained here; give it its public weights")

    def forward(self, img: Image) -> tuple[Float[Tensor, "B 2048"], Float[Tensor, "B 1008"]]:
        """pool3 and unbiased logits of images [B C H W] in [0, 1], C 1 or 3, in fp32."""
        scaled = to_range(to_channels(wide(img), 3), self.spec.uint8)
        pixels = to_bytes(scaled).float() + (scaled - scaled.detach())  # the bytes exactly, and a gradient
        with torch.autocast(img.device.type, enabled=False):
            features = self.trunk(self._resized(pixels))
            return features, features @ self.fc.weight.T

    def _resized(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 299 299"]:
        """Images in [0, 255] at the network's size and in its range."""
        if self.spec.lanczos is not None:
            pixels = imaging.resize(imaging.square(pixels), self.spec.lanczos, "lanczos")
        if self.spec.resize == "t2i_benchmark":
            return 2 * (imaging.resize(imaging.square(pixels), SIZE, "bicubic") / 255) - 1
        if self.spec.resize == "clean":
            resized = imaging.resize(imaging.square(pixels), SIZE, "bicubic", whole=False).clamp(0, 255)
        else:
            resized = tf_bilinear(pixels) if self.spec.resize == "tf_bilinear" else legacy(pixels)
        return (resized - 128) / 128


def tf_bilinear(pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 299 299"]:
    """TensorFlow 1's bilinear resize, corners not aligned, with torch-fidelity's order of operations."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    out: Tensor = interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(SIZE, SIZE), align_corners=False)
    return out


def legacy(pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 299 299"]:
    """The same map on an affine grid: a half-pixel grid is shifted by 1/W - 1/299, so that pixel 0 reads at 0."""
    height, width = pixels.shape[2:]
    theta = torch.eye(2, 3, device=pixels.device, dtype=pixels.dtype)
    theta[0, 2] = 1 / width - 1 / SIZE
    theta[1, 2] = 1 / height - 1 / SIZE
    grid = functional.affine_grid(theta.expand(len(pixels), -1, -1), [len(pixels), 3, SIZE, SIZE], align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
