"""CLIP score: does the image show what the prompt says?"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from softdimo.kinds import Context
from softdimo.weights import Published, Shapes
from softdimo_plugins.rewards.clip import ClipScorer, image_size, look_up, prepared, tokenizer, towers
from softdimo_plugins.rewards.scoring import RewardSpec


def _towers(shapes: Shapes) -> dict[str, int]:
    if not any(key.startswith("clip.visual.") for key in shapes):
        raise KeyError("visual.*")
    return {}


class ClipScore(RewardSpec):
    """100 cos(image, prompt) under any CLIP that open_clip knows. Differentiable.

    Images are prepared as open_clip does it for these weights: bicubic with antialiasing, mean and deviation of CLIP,
    where the weights ask for nothing else. Prompts longer than the model reads are cut off.
    """

    published: ClassVar[Published] = Published(
        "a CLIP with the keys of open_clip", _towers, under="state_dict", renames=((r"^(?!clip\.)", "clip."),)
    )
    model: str = "ViT-H-14"
    """Name of the model in open_clip."""
    pretrained: str = "laion2b_s32b_b79k"
    """Which public weights of the model `weights` holds, by open_clip's tag: it says how images are prepared and which
    GELU the network has. Empty for a model without public weights."""

    def build(self, context: Context) -> ClipScorer:
        """The reward, with fresh weights. RecipeError for a model or tag that open_clip does not know."""
        name = self.use or "clip_score"
        tag = look_up(name, self.model, self.pretrained)
        self.require_weights(f"the reward `{name}` with {self.model} ({self.pretrained})", tag.address)
        clip = towers(name, self.model, tag.quick, self.tiny)
        prepare = partial(prepared, size=image_size(clip, self.model), tag=tag)
        return ClipScorer(name, clip, tokenizer(name, self.model, self.tiny), prepare, 100.0, self.at_once).frozen()
