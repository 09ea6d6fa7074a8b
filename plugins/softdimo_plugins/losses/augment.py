"""What a reward is shown in place of an image, so that a student cannot please it with single pixels."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from softdimo.shapes import Image
from softdimo.spec import Fraction, NonNegative, Settings


class Augment(Settings):
    """Random views of an image: a crop, then a mirror, then noise. Each sample draws for itself."""

    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Least height and width of the crop, as a part of the image's. The part is drawn once for a view, so that a batch
    stays of one size; where it lies is drawn for each sample. 1 keeps images whole."""
    flip: Fraction = 0.0
    """Probability of exchanging left and right. Prompts that speak of left, right or letters do not go with it."""
    noise: NonNegative = 0.0
    """Standard deviation of the Gaussian noise on values in [0, 1], which are clipped to that range again."""
    views: Annotated[int, Field(ge=1)] = 1
    """Views of each image; its reward is their mean."""

    def view(self, img: Image, rng: torch.Generator) -> Image:
        """One view of each image, differentiable; what is off draws nothing."""
        B, device = len(img), img.device
        if self.crop < 1:
            part = float(torch.rand((), generator=rng, device=rng.device))
            top, left = torch.rand(2, B, generator=rng, device=rng.device).to(device)
            img = crop(img, self.crop + (1 - self.crop) * part, top, left)
        if self.flip:
            mirrored = torch.rand(B, generator=rng, device=rng.device).to(device) < self.flip
            img = torch.where(mirrored.view(-1, 1, 1, 1), img.flip(-1), img)
        if self.noise:
            drawn = torch.randn(img.shape, generator=rng, device=rng.device).to(img)
            img = (img + self.noise * drawn).clamp(0, 1)
        return img


def crop(img: Image, part: float, top: Tensor, left: Tensor) -> Image:
    """Crops of `part` of height and width; `top` and `left` [B] in [0, 1) say where among the places there are."""
    H, W = img.shape[2:]
    high, wide = max(1, round(part * H)), max(1, round(part * W))
    rows, columns = _places(top, H, high), _places(left, W, wide)
    out = img.gather(2, rows[:, None, :, None].expand(-1, img.shape[1], -1, W))
    return out.gather(3, columns[:, None, None, :].expand(-1, img.shape[1], high, -1))


def _places(at: Tensor, full: int, kept: int) -> Int[Tensor, "B n"]:
    begin = (at * (full - kept + 1)).long()
    return begin[:, None] + torch.arange(kept, device=at.device)
