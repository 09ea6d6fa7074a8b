"""What files and libraries of images do to pixels: bytes, centered squares, and Pillow's resizing, to the last bit."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from softdimo.shapes import Image

Rule = Literal["truncate", "round", "adm", "stretch"]
Filter = Literal["bicubic", "lanczos"]
SUPPORT = {"bicubic": 2.0, "lanczos": 3.0}
BITS = 22
"""Fixed-point bits of Pillow's coefficients for bytes."""


def to_range(img: Image, rule: Rule) -> Float[Tensor, "B C H W"]:
    """Images in [0, 1] in the range of bytes by a rule of `Inception.uint8`; `to_bytes` then cuts fractions off."""
    if rule == "stretch":
        low, high = (f(img, dim=(1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
        return (img - low) / (high - low).clamp_min(torch.finfo(img.dtype).tiny) * 255  # flat images are black
    if rule == "adm":
        return (2 * img - 1) * 127.5 + 128
    return (img * 255).round() if rule == "round" else img * 255


def to_bytes(scaled: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
    """Clipped to [0, 255], fractions cut off."""
    return scaled.clamp(0, 255).to(torch.uint8)


def square(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C S S"]:
    """The largest square in the middle; of an odd rest, the smaller half is cut off at the top and at the left."""
    size = min(pixels.shape[2:])
    top, left = ((length - size) // 2 for length in pixels.shape[2:])
    return pixels[:, :, top : top + size, left : left + size]


def resize(
    pixels: Float[Tensor, "B C N N"], size: int, kind: Filter, *, whole: bool = True
) -> Float[Tensor, "B C S S"]:
    """Square images in [0, 255] resized by a filter of Pillow (Lanczos of 3 lobes, bicubic with a = -1/2), both ways.

    The filter widens where the image shrinks. With `whole`, as Pillow resizes bytes: coefficients of 22 bits, lines
    rounded to bytes, then columns; the values must be whole. Else as it resizes an image of floats (mode F), which may
    leave [0, 255] a little. Gradients are those without rounding. (Of images that are not square, versions of Pillow
    resize columns first.)
    """
    length = pixels.shape[3]
    if pixels.shape[2] != length:
        raise ValueError(f"only square images are resized, not {length} x {pixels.shape[2]} pixels: see `square`")
    if length == size:
        return pixels
    here = pixels.detach().cpu() if pixels.device.type == "mps" else pixels.detach()  # which has no float64
    rows = _coefficients(length, size, kind, whole).to(here.device)
    out = _rounded(here.double() @ rows.T, whole)
    found = _rounded(rows @ out, whole).to(pixels)
    if not pixels.requires_grad:
        return found
    plain = _coefficients(length, size, kind, False).to(pixels)
    smooth = plain @ pixels @ plain.T
    return found + (smooth - smooth.detach())


def _rounded(x: Tensor, whole: bool) -> Tensor:
    """Sums of coefficients times pixels, as Pillow keeps them: as bytes, or as 32-bit floats."""
    return ((x + 2 ** (BITS - 1)) / 2**BITS).floor().clamp(0, 255) if whole else x.float().double()


@lru_cache(maxsize=16)
def _coefficients(length: int, size: int, kind: Filter, whole: bool) -> Float[Tensor, "S N"]:
    """Weight of each of `length` pixels in each of `size`, in float64; with `whole`, as integers times 2^22."""
    scale = length / size
    stretch = max(scale, 1.0)
    matrix = torch.zeros(size, length, dtype=torch.float64)
    for i in range(size):
        center = (i + 0.5) * scale
        first = max(int(center - SUPPORT[kind] * stretch + 0.5), 0)
        last = min(int(center + SUPPORT[kind] * stretch + 0.5), length)
        row = [_filter(kind, (j - center + 0.5) / stretch) for j in range(first, last)]
        total = sum(row)
        matrix[i, first:last] = torch.tensor([w / total for w in row], dtype=torch.float64)
    if whole:
        matrix = (matrix.abs() * 2**BITS + 0.5).floor() * matrix.sign()
    return matrix


def _filter(kind: Filter, x: float) -> float:
    x = abs(x)
    if kind == "lanczos":
        return _sinc(x) * _sinc(x / 3) if x < 3 else 0.0
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def _sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0
