"""The things in an image of the small world: connected pieces of one color of the palette, found without a network.

A pixel's departure from the canvas tells which color covers it and by how much (its alpha); what is covered by more
than half, connected (8 neighbors) and of one color is a piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from softdimo.shapes import Image
from softdimo_plugins.captions.scenes import PALETTE
from softdimo_plugins.rewards.connected import label_pieces

CROP = 16
"""Height and width of what the classifier sees of a piece."""
SPECK = 0.01
"""Pieces that cover less of the image are no things (10 of 32 x 32 pixels)."""


@dataclass(frozen=True)
class Pieces:
    """All pieces of a batch of images, image by image."""

    image: Int[Tensor, "n"]
    """Which image each is in."""
    color: Int[Tensor, "n"]
    """Its color, in the order of the palette."""
    center: Float[Tensor, "n 2"]
    """x and y of its center of mass, in pixels."""
    crops: Float[Tensor, "n 1 CROP CROP"]
    """Its alpha in the square around it, nothing else."""

    def __len__(self) -> int:
        return len(self.image)


def canvas(img: Image) -> Float[Tensor, "B 3"]:
    """Median color of the border's pixels."""
    border = torch.cat([img[:, :, 0], img[:, :, -1], img[:, :, 1:-1, 0], img[:, :, 1:-1, -1]], -1)
    return border.median(-1).values


def coverage(img: Image) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
    """The color of the palette that explains each pixel best, as canvas + alpha (color - canvas), and its alpha."""
    back = canvas(img)
    way = torch.tensor(list(PALETTE.values()), dtype=img.dtype, device=img.device) - back[:, None]
    departure = img - back[:, :, None, None]
    alpha = torch.einsum("bkc,bchw->bkhw", way, departure) / way.square().sum(-1)[:, :, None, None]
    alpha = alpha.clamp(0, 1)
    rest = departure[:, None] - alpha[:, :, None] * way[..., None, None]
    best = rest.square().sum(2).argmin(1)
    return best, alpha.gather(1, best[:, None])[:, 0]


@torch.no_grad()
def find(img: Image) -> Pieces:
    """The pieces of images [B 3 H W], larger ones than specks."""
    color, alpha = coverage(img)
    _, H, W = color.shape
    ink = (color[:, None] == torch.arange(len(PALETTE), device=img.device)[:, None, None]) & (alpha > 0.5)[:, None]
    of, hue = ink.flatten(2).any(-1).nonzero().T
    number = label_pieces(ink[of, hue])
    apart = number + torch.arange(len(of), device=img.device)[:, None, None] * (H * W + 1)
    keys, index, area = torch.unique(apart, return_inverse=True, return_counts=True)
    large = (keys % (H * W + 1) > 0) & (area > SPECK * H * W)
    plane = keys[large] // (H * W + 1)
    masks = index[plane] == large.nonzero()[:, :1, None]
    crops, center = cut(masks, alpha[of[plane]])
    return Pieces(of[plane], hue[plane], center, crops)


def cut(masks: Tensor, alpha: Tensor) -> tuple[Float[Tensor, "n 1 CROP CROP"], Float[Tensor, "n 2"]]:
    """Alpha of each mask and its fringe in the square around it, and the masks' centers of mass."""
    n, H, W = masks.shape
    if not n:
        return alpha.new_zeros(0, 1, CROP, CROP), alpha.new_zeros(0, 2)
    weight = masks.to(alpha.dtype)
    mass = weight.sum((1, 2))
    x, y = torch.arange(W, device=alpha.device).to(alpha), torch.arange(H, device=alpha.device).to(alpha)
    center = torch.stack([(weight.sum(1) @ x) / mass, (weight.sum(2) @ y) / mass], 1)
    fringe = functional.max_pool2d(weight[:, None], 3, 1, 1)[:, 0] * (masks | (alpha <= 0.5))  # none of the neighbor
    (left, right), (top, bottom) = _ends(masks.any(1)), _ends(masks.any(2))
    half = torch.maximum(right - left, bottom - top) / 2 + 1
    theta = torch.zeros(n, 2, 3, dtype=alpha.dtype, device=alpha.device)
    theta[:, 0, 0], theta[:, 1, 1] = 2 * half / W, 2 * half / H
    theta[:, 0, 2], theta[:, 1, 2] = (left + right) / W - 1, (top + bottom) / H - 1
    grid = functional.affine_grid(theta, [n, 1, 2 * CROP, 2 * CROP], align_corners=False)
    return functional.avg_pool2d(
        functional.grid_sample((fringe * alpha)[:, None], grid, align_corners=False), 2
    ), center


def _ends(ink: Tensor) -> tuple[Tensor, Tensor]:
    """Where the ink of each row [N n] begins and ends, in pixels."""
    return ink.float().argmax(1).float(), ink.shape[1] - ink.flip(1).float().argmax(1).float()
