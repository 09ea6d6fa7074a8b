"""How images are prepared for rewards, against the libraries that their authors used, on pictures of bytes."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image as Picture
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as official

from softdimo_plugins.rewards.clip import look_up, prepared
from softdimo_plugins.rewards.prepare import CLIP_MEAN, CLIP_STD, longest, resized, shortest, squashed, standardized

SIZES = [(256, 256), (224, 224), (32, 32), (300, 260), (231, 400), (97, 64), (1024, 1024)]


def pictures(height, width, seed=0):
    """A smooth picture with edges, as Pillow's and as numbers [1 3 H W] in [0, 1]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    picture = Picture.fromarray(coarse).resize((width, height), Picture.Resampling.BILINEAR)
    array = np.array(picture)
    array[height // 3 : height // 2, width // 3 : width // 2] = 255
    return Picture.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)[None] / 255


def gap(mine, theirs):
    """Mean difference, in levels of a byte before standardization, and the share of those beyond two levels."""
    scale = torch.tensor(CLIP_STD).view(3, 1, 1)
    difference = ((mine - theirs) * scale).abs() * 255
    return difference.mean().item(), (difference > 2).float().mean().item()


@pytest.mark.parametrize("size", SIZES)
def test_shortest_is_what_open_clip_does_to_pictures(size):
    picture, img = pictures(*size)
    theirs = open_clip.image_transform(224, is_train=False)(picture)
    mean, share = gap(standardized(shortest(img, 224))[0], theirs)
    assert mean < 0.4, "of 255: their pictures are rounded to bytes on the way"
    assert share < 2e-3, "at sharp corners, where Pillow clips between its two passes too"
    assert torch.equal(
        prepared(img, 224, look_up("r", "ViT-H-14", "laion2b_s32b_b79k")), standardized(shortest(img, 224))
    )


@pytest.mark.parametrize(("tag", "model"), [("webli", "ViT-B-16-SigLIP"), ("datacomp1b", "ViT-L-14-CLIPA")])
def test_squashed_is_what_open_clip_does_for_other_clips(tag, model):
    picture, img = pictures(300, 260)
    found = look_up("r", model, tag)
    theirs = open_clip.image_transform(
        224, False, mean=found.mean, std=found.std, resize_mode="squash", interpolation=found.kernel
    )(picture)
    mine = prepared(img, 224, found)[0]
    assert ((mine - theirs) * torch.tensor(found.std).view(3, 1, 1)).abs().mean() * 255 < 0.4
    assert torch.equal(mine, standardized(squashed(img, 224, found.kernel), found.mean, found.std)[0])


def test_the_center_is_cut_where_each_library_cuts_it():
    """A margin of three pixels: torchvision rounds half of it to even, transformers down."""
    columns = torch.arange(227.0).expand(1, 3, 224, 227) / 227
    assert (shortest(columns, 224)[0, 0, 0, 0] * 227).round() == 2
    assert (shortest(columns, 224, half=int)[0, 0, 0, 0] * 227).round() == 1
    assert torch.equal(shortest(columns, 224)[0], official.center_crop(columns[0], [224, 224]))
    rows = columns.mT
    assert (shortest(rows, 224, half=int)[0, 0, 0, 0] * 227).round() == 1


def test_the_longer_side_is_cut_off_after_the_point():
    _, img = pictures(231, 400)
    assert int(224 * 400 / 231) == 387
    expected = official.center_crop(official.resize(img[0], 224, InterpolationMode.BICUBIC).clamp(0, 1), [224, 224])
    torch.testing.assert_close(shortest(img, 224)[0], expected)


@pytest.mark.parametrize("size", [(32, 32), (300, 260), (260, 300), (231, 400), (97, 64), (448, 448)])
def test_longest_is_hpsv2s_rule(size):
    """Bicubic on numbers, then bands of zeros, the odd line behind."""
    _, img = pictures(*size)
    img = (img > 0.5).float()
    scale = 224 / max(size)
    tall, wide = (round(n * scale) for n in size)
    expected = official.resize(img[0], [tall, wide], InterpolationMode.BICUBIC)
    left, top = (224 - wide) // 2, (224 - tall) // 2
    expected = official.pad(expected, [left, top, 224 - wide - left, 224 - tall - top], fill=0)
    out = longest(img, 224)
    assert out.shape == (1, 3, 224, 224)
    torch.testing.assert_close(out[0], expected)
    assert out.max() > 1, "nothing is clipped"


def test_an_image_of_the_size_stays_as_it_is():
    _, img = pictures(224, 224)
    assert resized(img, 224, 224) is img
    assert torch.equal(longest(img, 224), img)


def test_the_mean_and_deviation_are_clips():
    assert (CLIP_MEAN, CLIP_STD) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    x = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)
    assert standardized(x).abs().max() == 0
    torch.testing.assert_close(standardized(x + torch.tensor(CLIP_STD).view(1, 3, 1, 1)), torch.ones(1, 3, 1, 1))


@pytest.mark.parametrize("rule", [shortest, squashed, longest])
def test_gradients_reach_every_pixel_that_is_seen(rule):
    x = torch.rand(2, 3, 50, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rule(x, 224)[0].sum().backward()
    assert x.grad[1].abs().max() == 0, "one image is not another's affair"
    seen = x.grad[0].abs().sum(0) > 0
    assert seen[8:42].all()
