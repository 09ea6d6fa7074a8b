"""A discriminator on decoded pixels with a timm backbone."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from softdimo.errors import PluginError, WeightsError
from softdimo.kinds import Cond, Context, Discriminator
from softdimo.shapes import PerSample
from softdimo.spec import NetworkSpec


class Pixels(NetworkSpec):
    """Multi-scale features of a timm backbone, a 1x1 projection with class conditioning per scale."""

    space: ClassVar[str] = "pixels"
    backbone: str = "resnet10t"
    """Any timm model that supports `features_only`."""
    pretrained: bool = False
    """Use timm's published weights (downloads them); a frozen, pretrained backbone gives projected features."""
    frozen: bool = False
    """Keep the backbone fixed and train the heads only (sensible with `pretrained`)."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Resize images to size x size first; null keeps them."""
    stages: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 3)
    """Backbone stages that carry a head."""
    norm: Literal["batch", "keep"] = "keep"
    """`keep` uses the backbone's normalization in evaluation mode, so scores never mix the samples of a batch."""

    def build(self, context: Context) -> PixelHeads:
        """Backbone and heads."""
        try:
            import timm
        except ImportError as error:
            raise PluginError("the discriminator `pixels` needs timm: run `pip install 'softdimo[timm]'`") from error
        try:
            backbone = timm.create_model(
                self.backbone, features_only=True, pretrained=self.pretrained, out_indices=self.stages, in_chans=3
            )
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise PluginError(f"timm cannot make `{self.backbone}` with stages {list(self.stages)}: {error}") from error
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(f"could not download timm's weights of `{self.backbone}`: {reason}") from error
        return PixelHeads(backbone, len(context.classes), self)


class PixelHeads(Discriminator):
    """[B C H W] in [0, 1] -> [B stages]; projection conditioning on the class."""

    space = Pixels.space

    def __init__(self, backbone: nn.Module, classes: int, spec: Pixels) -> None:
        super().__init__()
        self.spec = spec
        if spec.frozen:
            backbone.requires_grad_(False)
        self._fixed: list[nn.Module] = [backbone] if spec.frozen else []  # frozen: held, not registered
        self.backbone = None if spec.frozen else backbone
        widths: list[int] = backbone.feature_info.channels()  # type: ignore[operator, union-attr]
        self.heads = nn.ModuleList(nn.Conv2d(w, 1, 1) for w in widths)
        self.null = classes
        self.classes = nn.ModuleList(nn.Embedding(classes + 1, w) for w in widths)
        for table in self.classes.parameters():
            nn.init.zeros_(table)

    def forward(self, x: Tensor, ratio: PerSample, cond: Cond) -> Tensor:
        """Mean over positions of each stage's score; the ratio is not used."""
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        if self.spec.size is not None:
            x = interpolate(x, (self.spec.size, self.spec.size), mode="bilinear", antialias=True)
        backbone = self.backbone if self.backbone is not None else self._fixed[0].to(x.device)
        if self.spec.norm == "keep" or self.spec.frozen:
            backbone.eval()
        scores = []
        labels = torch.where(cond.labels < 0, self.null, cond.labels)
        x = 2 * x.to(next(backbone.parameters()).dtype) - 1
        for h, head, table in zip(backbone(x), self.heads, self.classes, strict=True):
            row = table(labels)
            h = h.to(row.dtype)
            scores.append(head(h).mean((1, 2, 3)) + (h.mean((2, 3)) * row).sum(-1))
        return torch.stack(scores, -1)
