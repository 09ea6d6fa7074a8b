"""ImageReward by its authors' package: what softdimo's own `image_reward` is held against."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor

from softdimo.errors import PluginError
from softdimo.kinds import Cond, Context
from softdimo.shapes import Image, PerSample
from softdimo.weights import Published
from softdimo_plugins.rewards.clip import marks
from softdimo_plugins.rewards.image_reward import ADDED, LENGTH, SIZE, TINY, WORDS, ImageReward, Sizes, words
from softdimo_plugins.rewards.scoring import Reader, Scorer, prompts_of


class ImageRewardOfficial(ImageReward):
    """The score of the package `image-reward`, normalized as it does. Differentiable.

    Network, preparation of images and tokenizer are the package's; the preparation acts on numbers instead of bytes.
    Weights are those of ImageReward-v1.0, loaded strictly.
    """

    published: ClassVar[Published] = Published(
        "ImageReward", marks("model.mlp.layers.0.weight"), renames=((r"^(?!model\.)", "model."),)
    )

    def build(self, context: Context) -> ImageRewardOfficialScorer:
        """The reward, with fresh weights. WeightsError without weights or vocabulary."""
        name = self.use or "imagereward_official"
        self.require_files(name)
        return ImageRewardOfficialScorer(name, official(self.vocabulary, self.tiny), self.at_once).frozen()


class ImageRewardOfficialScorer(Scorer):
    """The reward of `ImageRewardOfficial`."""

    def __init__(self, name: str, model: Any, at_once: int | None) -> None:
        super().__init__(at_once)
        self.name = name
        self.model: Any = model
        self.reader = Reader(self.encode)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Ids and attention mask of prompts [n 2 35]."""
        found = self.model.blip.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        return torch.stack((found.input_ids, found.attention_mask), 1).to(self.device)

    def read(self, cond: Cond, n: int) -> tuple[Tensor, ...]:
        """Ids and mask of the prompts."""
        return (self.reader(prompts_of(cond, n, self.name), self.device),)

    def score(self, img: Image, *given: Tensor) -> PerSample:
        """The package's differentiable score; its bytes cannot leave [0, 1], so numbers must not either."""
        resize, crop, _, _, normalize = self.model.preprocess.transforms
        self.model.device = img.device
        ids, mask = given[0].unbind(1)
        scores: Tensor = self.model.score_gard(ids, mask, normalize(crop(resize(img)).clamp(0, 1)))
        return scores[:, 0]


def official(vocabulary: str | None, tiny: bool) -> Any:
    """The package's network with fresh weights. It fetches nothing: tokenizer and configuration are handed to it."""
    sizes = TINY if tiny else Sizes()
    with warnings.catch_warnings():  # the package turns all warnings off
        warnings.simplefilter("ignore")
        try:
            from ImageReward.ImageReward import MLP
            from ImageReward.ImageReward import ImageReward as Network
            from ImageReward.models.BLIP import blip_pretrain
            from ImageReward.models.BLIP.vit import VisionTransformer
            from transformers import BertTokenizer
        except ImportError as error:
            raise PluginError(
                f"the reward `imagereward_official` cannot import its package ({error}); install it with "
                "`pip install . ./plugins/imagereward` in an environment of its own"
            ) from error

    with tempfile.TemporaryDirectory() as folder:

        def tokenizer() -> Any:
            file = Path(folder) / "vocab.txt"
            file.write_text("\n".join(words(vocabulary)) + "\n", encoding="utf-8")
            made = BertTokenizer(str(file), do_lower_case=True)
            made.add_special_tokens({"bos_token": "[DEC]"})
            made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
            return made

        def image_tower(*_: Any) -> tuple[Any, int]:
            net = VisionTransformer(
                img_size=SIZE, patch_size=sizes.patch, embed_dim=sizes.width, depth=sizes.depth, num_heads=sizes.heads
            )
            return net, sizes.width

        config = Path(folder) / "med_config.json"
        config.write_text(json.dumps(bert(sizes)), encoding="utf-8")
        with patch.multiple(blip_pretrain, init_tokenizer=tokenizer, create_vit=image_tower):
            model = Network(med_config=str(config))
    if tiny:
        model.mlp = MLP(sizes.text_width)
    return model


def bert(sizes: Sizes) -> dict[str, Any]:
    """The published configuration of the text tower."""
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes.text_width,
        "initializer_range": 0.02,
        "intermediate_size": 4 * sizes.text_width,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": sizes.text_heads,
        "num_hidden_layers": sizes.text_depth,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": WORDS + ADDED,
        "encoder_width": sizes.width,
        "add_cross_attention": True,
    }
