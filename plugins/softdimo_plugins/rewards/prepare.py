"""From an image in [0, 1] to what a published image tower was trained on: differentiable, each sample by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from softdimo.shapes import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Kernel = Literal["bicubic", "bilinear"]


def shortest(img: Image, size: int, kernel: Kernel = "bicubic", half: Callable[[float], int] = round) -> Image:
    """The shorter side to `size`, then the center [B C size size]: what CLIP's authors do to a picture.

    The longer side is cut off after the point. `half` says where a margin of an odd number of pixels is cut: `round`
    as torchvision (half to even), `int` as the image processors of transformers (down). Values are clipped to [0, 1],
    as they are in the bytes of a resized picture.
    """
    H, W = img.shape[2:]
    short = min(H, W)
    tall, wide = (size if n == short else int(size * n / short) for n in (H, W))
    out = resized(img, tall, wide, kernel).clamp(0, 1)
    top, left = half((tall - size) / 2), half((wide - size) / 2)
    return out[:, :, top : top + size, left : left + size]


def squashed(img: Image, size: int, kernel: Kernel = "bicubic") -> Image:
    """Both sides to `size`, whatever the shape was; values are clipped to [0, 1]."""
    return resized(img, size, size, kernel).clamp(0, 1)


def longest(img: Image, size: int) -> Image:
    """The longer side to `size`, and black bands beside the shorter one, the odd pixel behind it: HPSv2's rule.

    HPSv2 resizes numbers, not bytes, so that values beyond [0, 1] stay as the bicubic kernel makes them.
    """
    H, W = img.shape[2:]
    tall, wide = (round(n * (size / max(H, W))) for n in (H, W))
    high, broad = size - tall, size - wide
    out = resized(img, tall, wide)
    return functional.pad(out, (broad // 2, broad - broad // 2, high // 2, high - high // 2))


def resized(img: Image, height: int, width: int, kernel: Kernel = "bicubic") -> Image:
    """Resampled with antialiasing, as Pillow does; an image of that size stays as it is."""
    if img.shape[2:] == (height, width):
        return img
    return functional.interpolate(img, (height, width), mode=kernel, antialias=True)


def standardized(img: Image, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """(img - mean) / std, channel by channel."""
    center, scale = (torch.tensor(x, dtype=img.dtype, device=img.device).view(-1, 1, 1) for x in (mean, std))
    return (img - center) / scale
