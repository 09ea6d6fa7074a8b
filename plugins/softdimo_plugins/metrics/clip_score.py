"""CLIP score as text-to-image papers print it, 0.29 to 0.34 for good models: GigaGAN's protocol (arXiv 2303.05511)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Cond, Context, Metric
from softdimo.shapes import Image, PerSample
from softdimo.spec import Spec, component
from softdimo_plugins import imaging
from softdimo_plugins.imaging import Rule
from softdimo_plugins.metrics.rated import identity, prompts_of
from softdimo_plugins.rewards.clip import ClipScorer, image_size
from softdimo_plugins.rewards.clip_score import ClipScore as Network

HUNDRED = 100.0
"""The network's scores are so many times a cosine."""


class ClipScore(Spec):
    """`clip_score`: mean over images of cos(image, "A photo depicts " + prompt) under CLIP ViT-g-14 (LAION-2B).

    As Di[M]O's script has it, after GigaGAN's: a file's bytes, the square in the middle, Pillow's Lanczos to 256, and
    what open_clip does to a picture, bicubic to 224. Numbers under another CLIP are on another scale. (GigaGAN's own
    script takes one off 63 of the 256 byte values, by rounding; this does not.)
    """

    network: Annotated[Network, component("reward")] = Network(
        use="clip_score",
        model="ViT-g-14",
        pretrained="laion2b_s12b_b42k",
        weights="hf://laion/CLIP-ViT-g-14-laion2B-s12B-b42K/open_clip_pytorch_model.safetensors",
    )
    """The CLIP, and its weights (5.5 GB): settings of the reward `clip_score`."""
    prefix: str = "A photo depicts "
    """What every prompt begins with (Hessel et al. 2021)."""
    lanczos: Annotated[int, Field(ge=1)] | None = 256
    """Height and width that images have before CLIP's own; as they come when null."""
    uint8: Rule = "truncate"
    """How an image in [0, 1] becomes bytes, see `inception`; `truncate` is what Di[M]O's code does."""
    name: str = ""
    """Prefix of the number's name."""

    def build(self, context: Context) -> ClipScoreMetric:
        """The metric, without images yet. PluginError without the extra `rewards`, WeightsError without weights."""
        return ClipScoreMetric(self, context.make(self.network))


class Seen(NamedTuple):
    """What is kept of a batch."""

    cosines: PerSample


class ClipScoreMetric(Metric):
    """Keeps a sum."""

    seen_type = Seen
    compares_with = "nothing"
    formula = "clip-score/1 mean-cosine"

    def __init__(self, spec: ClipScore, network: ClipScorer) -> None:
        self.spec, self.network = spec, network
        self.size = image_size(network.clip, spec.network.model)
        self.reset()

    def reset(self) -> None:
        """Forget the images."""
        self._sum, self._n = 0.0, 0

    def seen_by_clip(self, img: Image) -> Float[Tensor, "B 3 S S"]:
        """Images [B C H W] in [0, 1] as bytes of CLIP's size, again in [0, 1]."""
        scaled = imaging.to_range(img.detach().float(), self.spec.uint8)
        pixels = imaging.square(imaging.to_bytes(scaled).float().expand(-1, 3, -1, -1))
        if self.spec.lanczos is not None:
            pixels = imaging.resize(pixels, self.spec.lanczos, "lanczos")
        return imaging.resize(pixels, self.size, "bicubic") / 255

    def look(self, img: Image, cond: Cond) -> Seen:
        """Cosines of images [B C H W] with their prompts. DataError where there are none."""
        prompts = tuple(self.spec.prefix + prompt for prompt in prompts_of(cond, "clip_score"))
        with torch.no_grad(), torch.autocast(img.device.type, enabled=False):
            scores = self.network(self.seen_by_clip(img), replace(cond, prompts=prompts))
        return Seen(scores.cpu().double() / HUNDRED)

    def add(self, seen: Seen) -> None:
        """Add the cosines of a batch."""
        self._sum += float(seen.cosines.sum())
        self._n += len(seen.cosines)

    def update(self, img: Image, cond: Cond) -> None:
        """Add generated images [B C H W]."""
        self.add(self.look(img, cond))

    def result(self) -> dict[str, float]:
        """The mean cosine. DataError without images."""
        if not self._n:
            raise DataError("clip_score: no images were given")
        return {f"{self.spec.name}/clip_score" if self.spec.name else "clip_score": self._sum / self._n}

    def fingerprint(self) -> dict[str, str | int | float]:
        """The formula, the network and its weights, and what images and prompts go through."""
        return {
            "formula": self.formula,
            "prefix": self.spec.prefix,
            "lanczos": "none" if self.spec.lanczos is None else self.spec.lanczos,
            "uint8": self.spec.uint8,
            **identity(self.spec.network, self.network),
        }
