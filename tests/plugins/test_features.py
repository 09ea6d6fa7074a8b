"""The CNN classifier: any image, augmentation from the generator alone, learning."""

import pytest
import torch
from torch.nn import functional

from softdimo.kinds import Cond, Context, ImageShape
from softdimo_plugins.data.digits import Digits
from softdimo_plugins.features.cnn import CNN, LUMINANCE, to_channels


def unused(spec):
    raise AssertionError("a classifier has no nested components")


def make(image=(1, 8, 8), classes=3, **settings):
    torch.manual_seed(0)
    spec = CNN(**({"width": 4, "features": 8} | settings))
    net = spec.build(Context(ImageShape(*image), tuple("abcdefghij"[:classes]), unused))
    with torch.no_grad():  # running statistics of something, not of nothing
        net.train()(torch.rand(32, *image, generator=rng(7)))
    return net.eval()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    data = Digits().build(Context(ImageShape(1, 1, 1), (), unused))
    return data.source("train").get(torch.arange(1200)), data.source("held_out").get(torch.arange(300))


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (28, 28), (32, 32), (33, 17), (64, 64), (96, 40), (5, 30)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", [2, 4, 6])
def test_shapes(size, channels, depth):
    net = make((channels, *size), depth=depth)
    features, logits = net(torch.rand(2, channels, *size, generator=rng()))
    assert features.shape == (2, net.width) == (2, 8)
    assert logits.shape == (2, 3)
    assert net.narrow.in_features <= 12 * 16  # at most 4 x 4 cells
    if depth == 4 and min(size) > 30:  # nothing is left to average: the convolutions themselves get there
        assert net.trunk[:-2](torch.rand(1, channels, *size)).shape[-1] <= 24


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_gray_survives_the_conversion(value):
    gray = torch.full((2, 1, 3, 3), value)
    color = to_channels(gray, 3)
    assert color.shape == (2, 3, 3, 3)
    torch.testing.assert_close(to_channels(color, 1), gray)
    assert to_channels(gray, 1) is gray
    assert to_channels(color, 3) is color


def test_luminance_of_colors():
    pure = torch.eye(3).view(3, 3, 1, 1)
    assert to_channels(pure, 1).flatten().tolist() == pytest.approx(LUMINANCE)
    assert sum(LUMINANCE) == pytest.approx(1)


def test_other_channels_and_sizes_are_brought_to_its_own():
    net = make((1, 16, 16))
    img = torch.rand(2, 1, 16, 16, generator=rng())
    torch.testing.assert_close(net(img.expand(-1, 3, -1, -1)), net(img))
    large = functional.interpolate(img, (64, 64), mode="nearest")
    torch.testing.assert_close(net(large)[1], net(img)[1], rtol=0.2, atol=0.05)
    assert not torch.allclose(net(1 - img)[1], net(img)[1])


def test_samples_do_not_mix_in_evaluation():
    net = make()
    img = torch.rand(6, 1, 8, 8, generator=rng())
    together = net(img)
    alone = [net(img[i : i + 1]) for i in range(6)]
    for k in range(2):
        torch.testing.assert_close(together[k], torch.cat([a[k] for a in alone]))


def test_gradient_reaches_the_image():
    img = torch.rand(3, 3, 20, 20, generator=rng()).requires_grad_()
    make()(img)[1][0, 1].backward()
    assert img.grad[0].abs().sum() > 0
    assert img.grad[1:].abs().sum() == 0


def test_features_are_what_the_head_sees():
    net = make()
    features, logits = net(torch.rand(3, 1, 8, 8, generator=rng()))
    assert features.min() >= 0
    torch.testing.assert_close(net.head(features), logits)


def test_bf16_autocast_returns_fp32():
    net, img = make(), torch.rand(3, 1, 8, 8, generator=rng())
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = net(img)
    assert features.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(logits, net(img)[1], rtol=0.1, atol=0.05)


def test_augmentation_stays_an_image_and_varies_by_sample():
    net = make()
    img = torch.rand(1, 1, 8, 8, generator=rng()).expand(16, -1, -1, -1)
    out = net.augment(img, rng())
    assert out.shape == img.shape
    assert 0 <= out.min() <= out.max() <= 1
    assert len({o.numpy().tobytes() for o in out}) == 16
    assert torch.equal(out, net.augment(img, rng()))


def test_augmentation_off_changes_nothing():
    img = torch.rand(16, 1, 8, 8, generator=rng())
    assert torch.equal(make(flip=False, jitter=0).augment(img, rng()), img)


def test_flips_only():
    img = torch.rand(64, 1, 8, 8, generator=rng())
    out = make(jitter=0).augment(img, rng())
    flipped = (out == img.flip(-1)).flatten(1).all(1)
    kept = (out == img).flatten(1).all(1)
    assert (flipped ^ kept).all()
    assert 16 < flipped.sum() < 48


def test_jitter_is_small():
    img = torch.zeros(200, 1, 21, 21)
    img[:, :, 10, 10] = 1
    img = functional.interpolate(img, (41, 41), mode="bilinear")
    out = make((1, 41, 41), flip=False).augment(img, rng())
    rows = torch.arange(41.0)
    mass = out.sum((1, 2, 3))
    for dim in (2, 3):
        center = (out.sum(5 - dim)[:, 0] * rows).sum(1) / mass
        assert 0.5 < (center - 20).abs().max() <= 0.06 * 41  # 5 % of the side, over a scale of 0.9


def test_rotations_and_scalings_are_there_and_small():
    bar = torch.zeros(200, 1, 41, 41)
    bar[:, :, 20, 8:33] = 1
    out = make((1, 41, 41), flip=False).augment(bar, rng())[:, 0]
    axis = torch.arange(41.0)
    mass = out.sum((1, 2))
    y, x = (out.sum(2) @ axis / mass)[:, None, None], (out.sum(1) @ axis / mass)[:, None, None]
    dy, dx = axis[:, None] - y, axis - x
    angle = 0.5 * torch.atan2(2 * (out * dy * dx).sum((1, 2)), (out * (dx**2 - dy**2)).sum((1, 2)))
    assert 0.12 < angle.abs().max() < 0.19  # 10 degrees are 0.175
    length = ((out * (dx**2 + dy**2)).sum((1, 2)) / mass).sqrt()
    assert 1.15 < length.max() / length.min() < 1.25  # 1.1 / 0.9


def test_dropout_keeps_the_mean_and_needs_training():
    net, seen = make((1, 16, 16), dropout=0.4, flip=False, jitter=0), []
    net.narrow.register_forward_pre_hook(lambda _, cells: seen.append(cells[0].detach()))
    img, cond = torch.rand(64, 1, 16, 16, generator=rng()), Cond(torch.arange(64) % 3)
    net(img)
    net.loss(img, cond, rng())
    whole, dropped = seen
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.6)
    assert (~kept & (whole > 0)).sum() / (whole > 0).sum() == pytest.approx(0.4, abs=0.05)


def test_shrinking_averages():
    net, seen = make((1, 8, 8)), []
    net.trunk[0].register_forward_pre_hook(lambda _, img: seen.append(img[0]))
    checkers = (torch.arange(40)[:, None] + torch.arange(40)) % 2  # every fifth pixel: checkers again
    net(checkers.float().expand(1, 1, -1, -1))
    assert seen[0].shape == (1, 1, 8, 8)
    assert seen[0].abs().max() < 0.1  # in [-1, 1]


def test_loss_draws_from_the_generator_only(digits):
    batch = digits[0]
    net = make(classes=2).train()
    state = torch.get_rng_state()
    losses = []
    for seed in (0, 0, 1):
        loss, logs = net.loss(batch.images[:32], batch.cond[:32], rng(seed))
        losses.append(loss.item())
    assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1] != losses[2]
    assert 0 <= logs["accuracy"] <= 1


@pytest.mark.parametrize("smoothing", [0, 0.3])
def test_without_its_noise_the_loss_is_cross_entropy(smoothing):
    net = make(dropout=0, flip=False, jitter=0, label_smoothing=smoothing)
    img, cond = torch.rand(6, 1, 8, 8, generator=rng()), Cond(torch.arange(6) % 3)
    loss, _ = net.loss(img, cond, rng())
    torch.testing.assert_close(loss, functional.cross_entropy(net(img)[1], cond.labels, label_smoothing=smoothing))


def test_it_learns_digits(digits):
    train, held = digits
    net = make(classes=2, width=12, features=32, flip=False).train()
    optimizer, draw = torch.optim.AdamW(net.parameters(), lr=5e-3), rng()
    for i in range(120):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - i / 120)
        index = torch.randint(len(train), (64,), generator=draw)
        loss, _ = net.loss(train.images[index], train.cond[index], draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = net.eval()(held.images)[1]
    assert (logits.argmax(1) == held.cond.labels).float().mean() > 0.9
