"""LAION's aesthetic predictors: how much people like an image, from CLIP's view of it, whatever the prompt."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from softdimo.kinds import Cond, Context
from softdimo.math.precision import wide
from softdimo.shapes import Image, PerSample
from softdimo.weights import Published, Shapes, count
from softdimo_plugins.rewards.clip import Tag, image_size, look_up, marks, prepared, towers
from softdimo_plugins.rewards.scoring import Head, RewardSpec, Scorer

MODEL, TAG = "ViT-L-14", "openai"
HIDDEN = {1: (), 5: (1024, 128, 64, 16)}
"""Linear layers -> widths between them."""
ADDRESS = {
    1: "sa_0_4_vit_l_14_linear.pth, from https://github.com/LAION-AI/aesthetic-predictor",
    5: "sac+logos+ava1-l14-linearMSE.pth, from https://github.com/christophschuhmann/improved-aesthetic-predictor",
}


def _sizes(shapes: Shapes) -> dict[str, int]:
    return {"layers": count(shapes, r"head\.layers\.(\d+)\.weight")}


class ClipImage(RewardSpec):
    """The image tower of OpenAI's CLIP ViT-L/14."""

    published: ClassVar[Published] = Published(
        "CLIP ViT-L/14 with the keys of open_clip",
        marks("visual.conv1.weight"),
        under="state_dict",
        renames=((r"^(?!visual\.)", "other."),),
        beside=("other.",),
    )
    use: Literal["clip_image"] = "clip_image"
    """Always this one."""

    def build(self, context: Context) -> ClipTower:
        """The tower, with fresh weights."""
        tag = look_up("aesthetic", MODEL, TAG)
        self.require_weights(f"clip: the image tower of {MODEL} under the reward `aesthetic`", tag.address)
        return ClipTower(tag, self.tiny)


class ClipTower(nn.Module):
    """Images [B 3 H W] in [0, 1] -> unit vectors [B D]."""

    def __init__(self, tag: Tag, tiny: bool) -> None:
        super().__init__()
        whole = towers("aesthetic", MODEL, tag.quick, tiny)
        self.size, self.tag = image_size(whole, MODEL), tag
        self.visual: Any = whole.visual
        self.width = int(whole.visual.output_dim)
        self.requires_grad_(False).eval()

    def forward(self, img: Image) -> Tensor:
        """Prepared as OpenAI does it, seen, normalized."""
        return functional.normalize(wide(self.visual(prepared(img, self.size, self.tag))), dim=-1)


class Aesthetic(RewardSpec):
    """Predicted rating from 1 to 10 on CLIP ViT-L/14's unit vector; prompts do not matter. Differentiable."""

    published: ClassVar[Published] = Published(
        "LAION's aesthetic predictor",
        _sizes,
        under="state_dict",
        renames=((r"^layers\.", "head.layers."), (r"^(weight|bias)$", r"head.layers.0.\1")),
    )
    layers: Literal[1, 5] = 5
    """Linear layers of the predictor: 5 (the improved one, trained on SAC, LOGOS and AVA) or 1 (the first one)."""
    clip: ClipImage = ClipImage()
    """The image tower and its weights, `clip: {weights: ...}`; `weights` are those of the predictor."""

    def build(self, context: Context) -> AestheticScorer:
        """The reward, with a fresh predictor on the tower."""
        self.require_weights(f"the reward `{self.use or 'aesthetic'}`", ADDRESS[self.layers])
        tower: ClipTower = context.make(self.clip)
        return AestheticScorer(tower, self.layers, self.at_once).frozen()


class AestheticScorer(Scorer):
    """The reward of `Aesthetic`; the tower is a network of its own, not a part of this one."""

    def __init__(self, tower: ClipTower, layers: int, at_once: int | None) -> None:
        super().__init__(at_once)
        self._tower = (tower,)
        self.head = Head(tower.width, HIDDEN[layers])

    def read(self, cond: Cond, n: int) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def score(self, img: Image, *given: Tensor) -> PerSample:
        """The predicted rating."""
        rating: Tensor = self.head(self._tower[0](img))[:, 0]
        return rating
