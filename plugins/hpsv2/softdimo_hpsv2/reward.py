"""HPSv2 by its authors' package: what softdimo's own `hpsv2` is held against."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from softdimo.errors import PluginError
from softdimo.kinds import Cond, Context
from softdimo.math.precision import wide
from softdimo.shapes import Image, PerSample
from softdimo.weights import Published
from softdimo_plugins.rewards.clip import TINY, marks
from softdimo_plugins.rewards.hpsv2 import HPSv2
from softdimo_plugins.rewards.scoring import Reader, Scorer, prompts_of

MODEL, TINY_MODEL = "ViT-H-14", "softdimo-tiny"


class HPSv2Official(HPSv2):
    """cos(image, prompt) by the package `hpsv2`, near 0.28 for good images. Differentiable.

    Network, preparation of images and tokenizer are the package's, and the weights are loaded strictly. Every image is
    compared with its own prompt.
    """

    published: ClassVar[Published] = Published(
        "HPSv2", marks("model.visual.conv1.weight"), under="state_dict", renames=((r"^(?!model\.)", "model."),)
    )

    def build(self, context: Context) -> HPSv2OfficialScorer:
        """The reward, with fresh weights."""
        name = self.use or "hpsv2_official"
        self.require_file(name)
        return HPSv2OfficialScorer(name, *official(self.tiny), self.at_once).frozen()


class HPSv2OfficialScorer(Scorer):
    """The reward of `HPSv2Official`."""

    def __init__(self, name: str, model: Any, preprocess: Any, tokenize: Any, at_once: int | None) -> None:
        super().__init__(at_once)
        self.name, self.preprocess, self.tokenize = name, preprocess, tokenize
        self.model: Any = model
        self.reader = Reader(self.encode)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Ids of prompts [n 77]."""
        ids: Tensor = self.tokenize(list(prompts))
        return ids.to(self.device)

    def read(self, cond: Cond, n: int) -> tuple[Tensor, ...]:
        """Ids of the prompts."""
        return (self.reader(prompts_of(cond, n, self.name), self.device),)

    def score(self, img: Image, *given: Tensor) -> PerSample:
        """The diagonal of the package's table of images and prompts."""
        _, _, resize, normalize = self.preprocess.transforms  # before them: to RGB, to numbers
        out = self.model(torch.stack([normalize(resize(one)) for one in img]), given[0])
        return torch.diagonal(wide(out["image_features"]) @ wide(out["text_features"]).T)


def official(tiny: bool) -> tuple[Any, Any, Any]:
    """The package's network with fresh weights, its preparation of images and its tokenizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from hpsv2.src import open_clip
        except ImportError as error:
            raise PluginError(
                f"the reward `hpsv2_official` cannot import its package ({error}); install it with "
                "`pip install . ./plugins/hpsv2` in an environment of its own"
            ) from error
        if tiny and TINY_MODEL not in open_clip.list_models():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{TINY_MODEL}.json"
                file.write_text(json.dumps(TINY), encoding="utf-8")
                open_clip.add_model_config(file)
        model, _, preprocess = open_clip.create_model_and_transforms(
            TINY_MODEL if tiny else MODEL, precision="fp32", light_augmentation=True, aug_cfg={}, output_dict=True
        )
    return model, preprocess, open_clip.get_tokenizer(MODEL)
