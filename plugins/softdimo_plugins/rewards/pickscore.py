"""PickScore (arXiv 2305.01569): a CLIP ViT-H/14 trained on the choices of Pick-a-Pic's users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from softdimo.kinds import Cond, Context
from softdimo.math.precision import wide
from softdimo.shapes import Image, PerSample
from softdimo.weights import Published
from softdimo_plugins.rewards.clip import Tokenize, marks, tokenizer
from softdimo_plugins.rewards.prepare import shortest, standardized
from softdimo_plugins.rewards.scoring import Reader, RewardSpec, Scorer, missing_extra, prompts_of

SIZE = 224
POSITIONS = ("clip.text_model.embeddings.position_ids", "clip.vision_model.embeddings.position_ids")
"""Buffers that can be computed; older files hold them."""


def sizes(tiny: bool) -> dict[str, Any]:
    """CLIP ViT-H/14 in the terms of transformers, or a tiny version."""
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    image = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    width, patch = 1024, 14
    if tiny:
        text = image = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
        width, patch = 32, 32
    same = {"hidden_act": "gelu", "projection_dim": width}
    return {
        "text_config": {**text, **same},
        "vision_config": {**image, **same, "image_size": SIZE, "patch_size": patch},
        "projection_dim": width,
    }


class PickScore(RewardSpec):
    """exp(logit scale) cos(image, prompt), about 100 cos: near 20 to 23 for good images. Differentiable.

    Images: the shorter side to 224 (bicubic with antialiasing), its center, CLIP's mean and deviation.
    """

    published: ClassVar[Published] = Published(
        "PickScore",
        marks("clip.vision_model.embeddings.patch_embedding.weight"),
        renames=((r"^(?!clip\.)", "clip."),),
        beside=POSITIONS,
    )

    def build(self, context: Context) -> PickScorer:
        """The reward, with fresh weights."""
        name = self.use or "pickscore"
        self.require_weights(f"the reward `{name}`", "hf://yuvalkirstain/PickScore_v1/model.safetensors")
        tokenize = tokenizer(name, "ViT-H-14")
        try:
            from transformers import CLIPConfig, CLIPModel
        except ImportError as error:
            raise missing_extra(name, error) from error
        return PickScorer(name, CLIPModel(CLIPConfig(**sizes(self.tiny))), tokenize, self.at_once).frozen()


class PickScorer(Scorer):
    """The reward of `PickScore`."""

    def __init__(self, name: str, clip: Any, tokenize: Tokenize, at_once: int | None) -> None:
        super().__init__(at_once)
        self.name, self.tokenize = name, tokenize
        self.clip: Any = clip
        self.reader = Reader(self.encode)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors of prompts [n D]; what comes after a prompt's end is not looked at."""
        ids = self.tokenize(list(prompts)).to(self.device)
        text = self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output)
        return functional.normalize(wide(text), dim=-1)

    def read(self, cond: Cond, n: int) -> tuple[Tensor, ...]:
        """Unit vectors of the prompts."""
        return (self.reader(prompts_of(cond, n, self.name), self.device),)

    def score(self, img: Image, *given: Tensor) -> PerSample:
        """exp(logit scale) cos(image, prompt)."""
        pixels = standardized(shortest(img, SIZE, half=int))
        image = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)
        cosine = (functional.normalize(wide(image), dim=-1) * given[0]).sum(-1)
        scores: PerSample = self.clip.logit_scale.exp() * cosine
        return scores
