"""Resizing as Pillow does it, to the last bit, and the rules before Inception against the packages' own steps."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from softdimo.kinds import Context, ImageShape
from softdimo_plugins.features.inception import Inception
from softdimo_plugins.imaging import resize, square

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def pixels(height, width, seed=0):
    """Noise, and below it black beside white, which overshoots."""
    x = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    x[height // 2 :] = (np.arange(width) > width // 2)[None, :, None] * 255
    return x


def tensor(x):
    return torch.from_numpy(np.array(x)).permute(2, 0, 1)[None].float()


def array(x):
    return x[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize(("length", "size"), [(64, 41), (41, 64), (100, 25), (7, 64), (64, 7), (33, 33), (2, 5)])
def test_bytes_and_floats_are_resized_as_pillow_does(kind, length, size):
    x = pixels(length, length)
    expected = np.asarray(Image.fromarray(x).resize((size, size), FILTERS[kind]))
    assert np.array_equal(array(resize(tensor(x), size, kind)), expected)
    channels = [Image.fromarray(c.astype(np.float32)).resize((size, size), FILTERS[kind]) for c in x.transpose(2, 0, 1)]
    found = array(resize(tensor(x), size, kind, whole=False))
    assert np.abs(found - np.stack([np.asarray(c) for c in channels], 2)).max() < 1e-4
    assert size == length or found.min() < 0, "floats overshoot, bytes are clipped"


def test_of_an_image_that_is_not_square_the_middle_is_taken():
    x = torch.arange(5 * 8).view(1, 1, 5, 8).float()
    assert torch.equal(square(x), x[:, :, :, 1:6])
    assert torch.equal(square(x.mT), x.mT[:, :, 1:6])
    with pytest.raises(ValueError, match="only square images are resized, not 8 x 5 pixels"):
        resize(x, 4, "bicubic")


def test_gradients_are_those_of_the_plain_filter():
    x = tensor(pixels(12, 12)).requires_grad_()
    plain = resize(x.detach(), 5, "lanczos", whole=False)
    out = resize(x, 5, "lanczos")
    assert torch.equal(out.detach(), resize(x.detach(), 5, "lanczos"))
    (g,) = torch.autograd.grad(out.square().sum() / 2, x)
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    moved = resize(x.detach() + step, 5, "lanczos", whole=False) - plain
    assert float((g * step).sum()) == pytest.approx(float((out.detach() * moved).sum()), rel=1e-4)


@pytest.fixture(scope="module")
def nets():
    """Inception by every rule, with the same weights, under which no signal dies."""

    def make(**settings):
        torch.manual_seed(0)
        spec = Inception(use="inception", fresh=True, uint8="truncate", **settings)
        net = spec.build(Context(ImageShape(3, 32, 32), (), make=lambda spec: spec)).eval()
        with torch.no_grad():
            for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
                nn.init.kaiming_normal_(conv.weight)
        return net

    return make


def theirs(net, x):
    """Features of what the network sees [1 3 299 299]."""
    with torch.no_grad():
        return net.trunk(torch.from_numpy(x).permute(2, 0, 1)[None].float())


def middle(image):
    size = min(image.size)
    left, top = ((n - size) // 2 for n in image.size)
    return image.crop((left, top, left + size, top + size))


def test_t2i_benchmark(nets):
    """Square, Pillow's bicubic on bytes, /255, 2 x - 1: the package's steps, by Pillow and numpy."""
    net, x = nets(resize="t2i_benchmark"), pixels(48, 60)
    resized = np.asarray(middle(Image.fromarray(x)).resize((299, 299), Image.Resampling.BICUBIC))
    expected = theirs(net, 2 * (resized.astype(np.float32) / np.float32(255)) - 1)
    with torch.no_grad():
        found = net(tensor(x) / 255)[0]
    assert expected.std() > 0.01
    assert torch.equal(found, expected)
    assert net.settings() == {"uint8": "truncate", "resize": "t2i_benchmark"}


def test_clean_after_lanczos(nets):
    """GigaGAN's: square, Lanczos to bytes of a smaller size; then clean-fid's: bicubic on floats, clipped."""
    net, x = nets(resize="clean", lanczos=32), pixels(48, 60)
    small = np.asarray(middle(Image.fromarray(x)).resize((32, 32), Image.Resampling.LANCZOS), np.float32)
    channels = [Image.fromarray(c).resize((299, 299), Image.Resampling.BICUBIC) for c in small.transpose(2, 0, 1)]
    resized = np.stack([np.asarray(c) for c in channels], 2).clip(0, 255)
    expected = theirs(net, (resized - 128) / 128)
    with torch.no_grad():
        found = net(tensor(x) / 255)[0]
    assert expected.std() > 0.01
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert net.settings() == {"uint8": "truncate", "resize": "clean", "lanczos": "32"}
