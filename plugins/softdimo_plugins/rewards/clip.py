"""CLIP by open_clip: its towers, its tokenizers, and the score that compares them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional

from softdimo.errors import RecipeError, WeightsError
from softdimo.kinds import Cond
from softdimo.math.precision import wide
from softdimo.shapes import Image, PerSample
from softdimo.weights import Shapes
from softdimo_plugins.rewards.prepare import Kernel, shortest, squashed, standardized
from softdimo_plugins.rewards.scoring import Reader, Scorer, missing_extra, prompts_of

Tokenize = Callable[[Sequence[str]], Tensor]
"""Prompts -> ids [B length]."""
CONTEXT, VOCABULARY = 77, 49408
TINY: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "layers": 2, "width": 64, "heads": 2},
}
"""A CLIP of half a hundred patches and the usual vocabulary, in seconds."""


class Tag(NamedTuple):
    """What open_clip knows of one set of public weights."""

    address: str
    mean: Sequence[float]
    std: Sequence[float]
    kernel: Kernel
    squash: bool
    quick: bool
    """Whether its activations are the approximate GELU of OpenAI's weights."""


def library(name: str) -> Any:
    """The module open_clip; PluginError without the extra."""
    try:
        import open_clip
    except ImportError as error:
        raise missing_extra(name, error) from error
    return open_clip


def look_up(name: str, model: str, tag: str) -> Tag:
    """What open_clip says of a model and a tag of its weights; RecipeError where it knows no such pair."""
    open_clip = library(name)
    models = open_clip.list_models()
    if model not in models:
        near = ", ".join(difflib.get_close_matches(model, models, 4)) or "see open_clip.list_models()"
        raise RecipeError(f"model: open_clip knows no `{model}`; near: {near}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags and (tag or tags):
        known = ", ".join(f"`{t}`" for t in tags) or "none, so write `pretrained: ''`"
        raise RecipeError(f"pretrained: `{model}` has no public weights `{tag}`; it has {known}")
    found: dict[str, Any] = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    hub = found.get("hf_hub", "")
    if hub:
        hub = f"hf://{hub}open_clip_model.safetensors" if hub.endswith("/") else f"hf://{hub}"
    return Tag(
        hub or found.get("url", ""),
        found.get("mean", open_clip.OPENAI_DATASET_MEAN),
        found.get("std", open_clip.OPENAI_DATASET_STD),
        found.get("interpolation", "bicubic"),
        found.get("resize_mode", "shortest") == "squash",
        bool(found.get("quick_gelu", False)),
    )


def towers(name: str, model: str, quick: bool = False, tiny: bool = False) -> Any:
    """A CLIP with fresh weights. `quick` takes OpenAI's approximate GELU; models named so have it anyway."""
    open_clip = library(name)
    if tiny:
        return open_clip.CLIP(**TINY, quick_gelu=quick)
    config: dict[str, Any] = open_clip.get_model_config(model)
    image, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in image:
        image["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    config["quick_gelu"] = quick or config.get("quick_gelu", False)
    own_text = config.pop("custom_text", False) or "hf_model_name" in text
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if own_text else open_clip.CLIP
    return _reached(name, model, lambda: kind(**config)) if "hf_model_name" in text else kind(**config)


def tokenizer(name: str, model: str, tiny: bool = False) -> Tokenize:
    """The tokenizer of a model. That of OpenAI's CLIP comes with open_clip; others come from the hub or its cache."""
    open_clip = library(name)
    text: dict[str, Any] = {} if tiny else open_clip.get_model_config(model)["text_cfg"]
    if "hf_tokenizer_name" not in text and "siglip" not in model.lower():
        made = open_clip.SimpleTokenizer(
            context_length=text.get("context_length", CONTEXT), **text.get("tokenizer_kwargs", {})
        )
    else:
        made = _reached(name, model, lambda: open_clip.get_tokenizer(model))
    return made  # type: ignore[no-any-return]


def _reached(name: str, model: str, make: Callable[[], Any]) -> Any:
    """What `make` gives; WeightsError where it asks the hub in vain."""
    try:
        return make()
    except ImportError as error:
        raise missing_extra(name, error) from error
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"the text side of `{model}` lies on the Hugging Face hub and cannot be had ({reason}); fetch it once with "
            "a connection, or choose a model whose vocabulary is open_clip's own, as ViT-H-14"
        ) from error


def image_size(clip: Any, model: str) -> int:
    """Height and width that the image tower sees."""
    size = clip.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise RecipeError(f"model: `{model}` sees images of {height} x {width}; rewards take square ones")
    return int(height)


def prepared(img: Image, size: int, tag: Tag) -> Tensor:
    """As open_clip prepares pictures for these weights."""
    out = squashed(img, size, tag.kernel) if tag.squash else shortest(img, size, tag.kernel)
    return standardized(out, tag.mean, tag.std)


class ClipScorer(Scorer):
    """scale * cos(image, prompt) under a CLIP."""

    def __init__(
        self,
        name: str,
        clip: Any,
        tokenize: Tokenize,
        prepare: Callable[[Image], Tensor],
        scale: float,
        at_once: int | None,
    ) -> None:
        super().__init__(at_once)
        self.name, self.tokenize, self.prepare, self.scale = name, tokenize, prepare, scale
        self.clip: Any = clip
        self.reader = Reader(self.encode)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors of prompts [n D]."""
        text: Tensor = self.clip.encode_text(self.tokenize(list(prompts)).to(self.device))
        return functional.normalize(wide(text), dim=-1)

    def read(self, cond: Cond, n: int) -> tuple[Tensor, ...]:
        """Unit vectors of the prompts."""
        return (self.reader(prompts_of(cond, n, self.name), self.device),)

    def score(self, img: Image, *given: Tensor) -> PerSample:
        """scale * cos(image, prompt)."""
        image = functional.normalize(wide(self.clip.encode_image(self.prepare(img))), dim=-1)
        return self.scale * (image * given[0]).sum(-1)


def marks(key: str) -> Callable[[Shapes], dict[str, int]]:
    """A `Published.sizes` for networks whose sizes are fixed: KeyError where `key` is missing."""
    return partial(_marked, key)


def _marked(key: str, shapes: Shapes) -> dict[str, int]:
    if key not in shapes:
        raise KeyError(key)
    return {}
