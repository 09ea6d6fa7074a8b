"""Human Preference Score v2 (arXiv 2306.09341): a CLIP ViT-H/14 trained on people's choices between images."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from softdimo.errors import WeightsError
from softdimo.kinds import Context
from softdimo.shapes import Image
from softdimo.weights import Published
from softdimo_plugins.rewards.clip import ClipScorer, marks, tokenizer, towers
from softdimo_plugins.rewards.prepare import longest, standardized
from softdimo_plugins.rewards.scoring import RewardSpec, Scorer

FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
SIZE = 224


class HPSv2(RewardSpec):
    """cos(image, prompt), near 0.28 for good images; tables of HPSv2 print 100 times that. Differentiable.

    The longer side becomes 224 (bicubic with antialiasing, on numbers), the rest is black.
    """

    published: ClassVar[Published] = Published(
        "HPSv2", marks("clip.visual.conv1.weight"), under="state_dict", renames=((r"^(?!clip\.)", "clip."),)
    )
    version: Literal["2.0", "2.1"] = "2.1"
    """Which of the two public files `weights` holds. They differ in their weights only, and so do their scores."""

    def build(self, context: Context) -> Scorer:
        """The reward, with fresh weights."""
        name = self.use or "hpsv2"
        self.require_file(name)
        clip = towers(name, "ViT-H-14", tiny=self.tiny)
        return ClipScorer(name, clip, tokenizer(name, "ViT-H-14"), prepare, 1.0, self.at_once).frozen()

    def require_file(self, name: str) -> None:
        """WeightsError where no weights are named."""
        self.require_weights(f"the reward `{name}`", f"hf://xswu/HPSv2/{FILES[self.version]}")

    def load_weights(self, module: nn.Module, path: Path) -> None:
        """Load a public file; WeightsError where its name is that of the other version."""
        for version, file in FILES.items():
            if path.name == file and version != self.version:
                raise WeightsError(
                    f"{path} is HPSv{version}; the recipe says version: '{self.version}'. Change it to "
                    f"version: '{version}', or give {FILES[self.version]}"
                )
        super().load_weights(module, path)


def prepare(img: Image) -> Tensor:
    """Longest side to 224, black bands, CLIP's mean and deviation."""
    return standardized(longest(img, SIZE))
