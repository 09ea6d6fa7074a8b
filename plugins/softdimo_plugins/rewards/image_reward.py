"""ImageReward (arXiv 2304.05977): BLIP reads the prompt while it looks at the image; trained on experts' rankings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from softdimo.errors import WeightsError
from softdimo.kinds import Cond, Context
from softdimo.math.precision import wide
from softdimo.shapes import Image, PerSample
from softdimo.spec import LocalPath
from softdimo.weights import Published, download
from softdimo_plugins.rewards.clip import marks
from softdimo_plugins.rewards.prepare import shortest, standardized
from softdimo_plugins.rewards.scoring import Head, Reader, RewardSpec, Scorer, missing_extra, prompts_of

SIZE, LENGTH = 224, 35
"""Height and width of the image, tokens of a prompt."""
WORDS, ADDED = 30522, 2
"""Rows of the table: those of bert-base-uncased, and two that BLIP added and prompts never use."""
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the scores on the authors' data; published scores are normalized by them."""
VOCABULARY = "hf://google-bert/bert-base-uncased/vocab.txt"


class Sizes(NamedTuple):
    """Widths and depths of the two towers and of the head."""

    patch: int = 16
    width: int = 1024
    depth: int = 24
    heads: int = 16
    text_width: int = 768
    text_depth: int = 12
    text_heads: int = 12


TINY = Sizes(patch=32, width=64, depth=2, heads=2, text_width=48, text_depth=2, text_heads=2)


class ImageReward(RewardSpec):
    """The score of ImageReward-v1.0, normalized as its authors do (mean 0, deviation 1). Differentiable.

    Images: the shorter side to 224 (bicubic with antialiasing), its center, CLIP's mean and deviation. Prompts: the
    first 35 tokens.
    """

    published: ClassVar[Published] = Published(
        "ImageReward",
        marks("mlp.layers.0.weight"),
        renames=((r"^blip\.visual_encoder\.", "image."), (r"^blip\.text_encoder\.", "text.")),
        beside=("blip.", "text.embeddings.position_ids"),
    )
    vocabulary: LocalPath | None = None
    """The vocabulary of bert-base-uncased, `vocab.txt`: a path, or hf://google-bert/bert-base-uncased/vocab.txt. Random
    weights (`fresh`) can do without: prompts are then read letter by letter."""

    def build(self, context: Context) -> Scorer:
        """The reward, with fresh weights. WeightsError without weights or vocabulary, PluginError without the extra."""
        name = self.use or "image_reward"
        self.require_files(name)
        try:
            return ImageRewardScorer(name, self.vocabulary, TINY if self.tiny else Sizes(), self.at_once).frozen()
        except ImportError as error:
            raise missing_extra(name, error) from error

    def smoke(self) -> Self:
        """Tiny, with random weights and without a vocabulary of the hub."""
        local = self.vocabulary is not None and "://" not in self.vocabulary
        return super().smoke().model_copy(update={"vocabulary": self.vocabulary if local else None})

    def require_files(self, name: str) -> None:
        """WeightsError where weights or vocabulary are not named, or a local vocabulary is not there."""
        self.require_weights(f"the reward `{name}`", "hf://THUDM/ImageReward/ImageReward.pt")
        if self.vocabulary is None and not self.fresh:
            raise WeightsError(
                f"the reward `{name}` reads prompts by the vocabulary of bert-base-uncased: name it, "
                f"`vocabulary: {VOCABULARY}` (that, or the path of a copy of the file)"
            )
        if self.vocabulary is not None and "://" not in self.vocabulary and not Path(self.vocabulary).is_file():
            raise WeightsError(f"no vocabulary at {self.vocabulary}; {VOCABULARY} is the one to copy")


class ImageRewardScorer(Scorer):
    """The reward of `ImageReward`: ViT-L/16, a BERT that attends to its tokens, linear layers on [CLS]."""

    def __init__(self, name: str, vocabulary: str | None, sizes: Sizes, at_once: int | None) -> None:
        from timm.models.vision_transformer import VisionTransformer
        from transformers import BlipTextConfig
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__(at_once)
        self.name, self.vocabulary = name, vocabulary
        self.image = VisionTransformer(
            SIZE, sizes.patch, embed_dim=sizes.width, depth=sizes.depth, num_heads=sizes.heads, num_classes=0,
            global_pool="",
        )  # fmt: skip
        config = BlipTextConfig(
            vocab_size=WORDS + ADDED, hidden_size=sizes.text_width, encoder_hidden_size=sizes.width,
            intermediate_size=4 * sizes.text_width, num_hidden_layers=sizes.text_depth,
            num_attention_heads=sizes.text_heads, hidden_act="gelu", layer_norm_eps=1e-12, is_decoder=True,
        )  # fmt: skip
        self.text = BlipTextModel(config, add_pooling_layer=False)
        self.mlp = Head(sizes.text_width)
        self.reader = Reader(self.encode)
        self._tokenizer: Any = None

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Ids and attention mask of prompts [n 2 35]."""
        if self._tokenizer is None:
            self._tokenizer = wordpieces(self.vocabulary)
        found = self._tokenizer.encode_batch(list(prompts))
        return torch.tensor([[one.ids, one.attention_mask] for one in found], device=self.device)

    def read(self, cond: Cond, n: int) -> tuple[Tensor, ...]:
        """Ids and mask of the prompts."""
        return (self.reader(prompts_of(cond, n, self.name), self.device),)

    def score(self, img: Image, *given: Tensor) -> PerSample:
        """Normalized scores."""
        seen = self.image(standardized(shortest(img, SIZE)))
        ids, mask = given[0].unbind(1)
        everywhere = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        read = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, encoder_attention_mask=everywhere,
            is_decoder=False,
        )  # fmt: skip
        raw: Tensor = self.mlp(read.last_hidden_state[:, 0])[:, 0]
        return (wide(raw) - MEAN) / STD


def wordpieces(vocabulary: str | None) -> Any:
    """The tokenizer of bert-base-uncased: `encode_batch` gives 35 ids and a mask for each prompt."""
    from tokenizers import BertWordPieceTokenizer

    made = BertWordPieceTokenizer({word: i for i, word in enumerate(words(vocabulary))}, lowercase=True)
    made.enable_truncation(LENGTH)
    made.enable_padding(length=LENGTH)
    return made


def words(vocabulary: str | None) -> list[str]:
    """The words of a vocabulary in the order of their ids; None stands for letters, digits and punctuation.

    `vocabulary` is a path or an address on the hub. WeightsError where it is not that of bert-base-uncased.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if vocabulary is None:
        signs = [chr(c) for c in range(33, 127)]
        return [*special, *signs, *(f"##{sign}" for sign in signs)]
    path = download(vocabulary) if vocabulary.startswith("hf://") else Path(vocabulary)
    try:
        found = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not a vocabulary that can be read ({error})") from error
    if len(found) != WORDS or not set(special) <= set(found):
        raise WeightsError(
            f"{path} is not the vocabulary of bert-base-uncased, which has {WORDS} lines, [CLS] among them; this one "
            f"has {len(found)}"
        )
    return found
