"""CLIP's text towers, which Meissonic (ViT-H/14) and MaskGen (ViT-L/14 at 336 px) are conditioned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from softdimo.errors import PluginError, RecipeError, WeightsError
from softdimo.kinds import Context, TextEncoder
from softdimo.spec import LocalPath
from softdimo.weights import WRAPPERS, Published, Shapes, count
from softdimo_plugins.layers import full_precision
from softdimo_plugins.public import PublicTransformer
from softdimo_plugins.text_encoders import words

BLOCKS = "transformer.resblocks."
"""Where open_clip's (and OpenAI's) files have the blocks."""
INNER = (
    ("ln_1.", "layer_norm1."), ("ln_2.", "layer_norm2."), ("mlp.c_fc.", "mlp.fc1."), ("mlp.c_proj.", "mlp.fc2."),
    ("attn.out_proj.", "self_attn.out_proj."),
)  # fmt: skip
"""In a block, open_clip's names and transformers'."""
OUTER = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
TOKENS = "net.text_model.embeddings.token_embedding.weight"
POSITIONS = "net.text_model.embeddings.position_ids"
"""0 to 76, in older files of transformers."""


def sizes(shapes: Shapes) -> dict[str, int]:
    """Settings that the weights show."""
    return {
        "width": shapes[TOKENS][1],
        "depth": count(shapes, r"net\.text_model\.encoder\.layers\.(\d+)\."),
        "projection": shapes["net.text_projection.weight"][0],
        "ids": shapes[TOKENS][0],
        "tokens": shapes["net.text_model.embeddings.position_embedding.weight"][0],
    }


class TextTower(Published):
    """Files of transformers (a text model, or a whole CLIP), of open_clip, or of OpenAI; the images' tower is left."""

    def state(self, content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
        """The text tower's weights under our names."""
        inner = content.get(self.under, content)
        return super().state(as_transformers(inner) if isinstance(inner, Mapping) else content, path)


def as_transformers(state: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's keys and layouts as transformers has them: q, k and v apart, the projection transposed.

    Keys of transformers, and what belongs to no text tower, stay as they are.
    """
    out: dict[str, Any] = {}
    for key, value in state.items():
        name = str(key)
        while name.startswith(WRAPPERS):
            name = name[name.index(".") + 1 :]
        if not isinstance(value, Tensor):
            out[name] = value
        elif name.startswith(BLOCKS):
            number, _, rest = name.removeprefix(BLOCKS).partition(".")
            block = f"text_model.encoder.layers.{number}."
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                for part, rows in zip("qkv", value.chunk(3), strict=True):
                    out[f"{block}self_attn.{part}_proj.{kind}"] = rows
                continue
            ours = next((b + rest.removeprefix(a) for a, b in INNER if rest.startswith(a)), rest)
            out[block + ours] = value
        elif name == "text_projection":
            out["text_projection.weight"] = value.T
        else:
            out[OUTER.get(name, name)] = value
    return out


class Clip(PublicTransformer):
    """A CLIP text tower; ViT-H/14 by default, Meissonic's. MaskGen's ViT-L/14 is `{width: 768, depth: 12, heads: 12}`.

    It gives `states` [B 77 D], the output of the last but one block, and `pooled` [B P], the projected last state at
    the end of the prompt. `weights` names a file of transformers (a text model or a whole CLIP) or of open_clip.
    """

    published: ClassVar[Published] = TextTower(
        "a CLIP text tower",
        sizes,
        under="state_dict",
        renames=((r"^(text_model|text_projection)\.", r"net.\g<0>"),),
        beside=(
            "visual.", "vision_model.", "visual_projection.", "logit_scale", "logit_bias", "input_resolution",
            "context_length", "vocab_size", POSITIONS,
        ),
    )  # fmt: skip
    public_heads: ClassVar[dict[tuple[int, int], int]] = {(1024, 24): 16, (768, 12): 12}
    width: Annotated[int, Field(ge=8)] = 1024
    """Width D of the states."""
    depth: Annotated[int, Field(ge=2)] = 24
    """Transformer blocks."""
    heads: Annotated[int, Field(ge=1)] = 16
    """Attention heads; they divide the width. The weights do not show them."""
    projection: Annotated[int, Field(ge=1)] | None = None
    """Width P of the pooled vector; that of the states when null, as in both of the towers above."""
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    """Between the layers of a block: exact, or x sigmoid(1.702 x). The weights do not show it. LAION's towers were
    trained with `gelu`, OpenAI's with `quick_gelu`; MaskGen's was trained with features of OpenAI's weights under
    either, as open_clip 2.29 to 2.31 runs them with `gelu`."""
    vocabulary: LocalPath | None = None
    """Folder (or hf://owner/repo/folder) with vocab.json, merges.txt and perhaps tokenizer_config.json or
    special_tokens_map.json, as checkpoints of transformers carry it; open_clip's own vocabulary, which is the same but
    for the padding, when null."""
    padding: Literal["own", "zero"] = "own"
    """What follows the end of a prompt, which all later states depend on. `own`: what the vocabulary's files say, the
    end again when they say nothing. `zero`: id 0, as open_clip pads (MaskGen)."""
    cleaning: words.Cleaning = "transformers"
    """How prompts are cleaned before they are cut into words. `transformers`: Unicode's NFC. `ftfy`: mended by that
    package. `open_clip`: mended so, and HTML's escapes undone twice (MaskGen)."""
    decoder_states: bool = False
    """Give `decoder_states` [B 77 D] too, the last block's output after the last norm: what MaskGen's tokenizer decodes
    with."""
    negative: str = ""
    """The prompt of the unconditional branch of guidance."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision that encodings are rounded to and kept in. Networks get them as float32; half of the bits are half of
    the disk: a prompt of the default tower takes 319,488 bytes, or 159,744."""

    def build(self, context: Context) -> ClipEncoder:
        """The tower, with fresh weights. WeightsError where the recipe names none, PluginError without the extra."""
        if not self.ready():
            raise WeightsError(
                f"the text encoder `{self.use or 'clip'}` needs its public weights: name a file, `weights: path/to/"
                "model.safetensors` or `hf://owner/repo/file` (`fresh: true` takes random ones, for trials only)"
            )
        if self.width % self.heads:
            raise RecipeError(f"heads: {self.heads} does not divide width: {self.width}")
        place = self.vocabulary
        if place is not None and place.startswith("hf://") and context.device.type == "meta":
            place = None  # nothing is fetched for a network without numbers
        vocabulary = words.bundled() if place is None else words.read(words.locate(place))
        try:
            return ClipEncoder(self, words.Words(vocabulary, 0 if self.padding == "zero" else None, self.cleaning))
        except ImportError as error:
            raise PluginError(
                f"the text encoder `clip` needs transformers and ftfy ({error}): run `pip install 'softdimo[text]'`"
            ) from error

    def content(self) -> str:
        """SHA-256 of the vocabulary's files, where a folder holds them."""
        if self.vocabulary is None or self.vocabulary.startswith("hf://"):
            return ""
        return words.digest(words.locate(self.vocabulary))

    def smoke(self) -> Self:
        """Two blocks, random weights instead of a file's, no vocabulary of the hub's; all else keeps its size."""
        ours = None if self.vocabulary is not None and self.vocabulary.startswith("hf://") else self.vocabulary
        return super().smoke().model_copy(update={"vocabulary": ours})


class ClipEncoder(TextEncoder):
    """The network of `Clip`, transformers', and its words."""

    def __init__(self, spec: Clip, cut: words.Words) -> None:
        import ftfy  # noqa: F401  (missing now, not at the first prompt)
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        super().__init__()
        self.negative, self.words, self.decodes = spec.negative, cut, spec.decoder_states
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        config = CLIPTextConfig(
            vocab_size=cut.size,
            max_position_embeddings=cut.length,
            hidden_size=spec.width,
            intermediate_size=4 * spec.width,
            num_hidden_layers=spec.depth,
            num_attention_heads=spec.heads,
            projection_dim=spec.projection or spec.width,
            hidden_act=spec.activation,
            layer_norm_eps=1e-5,
            bos_token_id=cut.start,
            eos_token_id=cut.end,
            pad_token_id=cut.pad,
        )
        self.net: nn.Module = CLIPTextModelWithProjection(config)

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`states` [B 77 D], `pooled` [B P], and `decoder_states` [B 77 D] where asked for."""
        return {name: t.to(self.dtype) for name, t in self.features(self.words(prompts)).items()}

    def features(self, ids: Int[Tensor, "B L"]) -> dict[str, Float[Tensor, "B *rest"]]:
        """The same of ids, in float32; padding is attended to like words, as it was in training."""
        device = next(self.parameters()).device
        with full_precision(device):
            out = self.net(input_ids=ids.to(device), output_hidden_states=True)
        found = {"states": out.hidden_states[-2], "pooled": out.text_embeds}
        return found | ({"decoder_states": out.last_hidden_state} if self.decodes else {})
