"""Discriminators: no mixing of samples, gradients to the input only, parameters that are exactly the trainable ones."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from softdimo.errors import PluginError, WeightsError
from softdimo.kinds import Cond, Context, Discriminator, ImageShape
from softdimo_plugins.discriminators.pixels import PixelHeads, Pixels
from softdimo_plugins.discriminators.teacher_features import TeacherFeatureHeads, TeacherFeatures
from tests.engine import tiny

N = 5


def embeddings(ctx: Context, n: int = N) -> Tensor:
    assert ctx.teacher is not None
    return ctx.teacher.embed(tiny.batch(n).tokens)


def ratios(n: int = N) -> Tensor:
    return torch.linspace(0, 0.95, n)


def labels(n: int = N) -> Cond:
    return Cond(torch.arange(n) % 3)


def heads(ctx: Context, **settings: object) -> TeacherFeatureHeads:
    torch.manual_seed(0)
    return TeacherFeatures(**settings).build(ctx)  # type: ignore[arg-type]


def check_samples_apart(net: Discriminator, x: Tensor, tolerance: float) -> None:
    whole = net(x, ratios(), labels())
    assert whole.shape[0] == N
    assert whole.std(0).min() > 10 * tolerance
    for i in range(N):
        alone = net(x[i : i + 1], ratios()[i : i + 1], labels()[i : i + 1])
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=tolerance)


def test_teacher_features_score_each_sample_by_itself() -> None:
    ctx = tiny.context()
    check_samples_apart(heads(ctx, hidden=8), embeddings(ctx), 1e-5)


def test_teacher_features_give_gradients_to_the_input_and_none_to_the_teacher() -> None:
    ctx = tiny.context()
    assert ctx.teacher is not None
    x = embeddings(ctx).detach().requires_grad_()
    heads(ctx)(x, ratios(), labels()).sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(p.grad is None for p in ctx.teacher.parameters())


def test_teacher_features_own_their_heads_only() -> None:
    ctx = tiny.context()
    net = heads(ctx, hidden=8)
    assert all(name.startswith("heads.") for name in net.state_dict())
    assert all(p.requires_grad for p in net.parameters())
    assert sum(p.numel() for p in net.parameters()) == 2 * (2 * 16 + 16 * 8 + 8 + 8 * 8 + 8 + 8 + 1)


def test_teacher_features_depend_on_ratio_class_and_block() -> None:
    ctx = tiny.context()
    net, x = heads(ctx, hidden=8), embeddings(ctx)
    base = net(x, ratios(), labels())
    assert (net(x, ratios().flip(0), labels())[[0, 4]] - base[[0, 4]]).abs().min() > 1e-4
    assert (net(x, ratios(), Cond((torch.arange(N) + 1) % 3)) - base).abs().min() > 1e-6
    assert (base[:, 0] - base[:, 1]).abs().min() > 1e-4


def test_teacher_features_in_float64() -> None:
    ctx = tiny.context()
    assert ctx.teacher is not None
    ctx.teacher.double()
    assert heads(ctx).double()(embeddings(ctx), ratios(), labels()).dtype == torch.float64


def test_heads_of_lower_precision_than_the_trunk_still_score() -> None:
    ctx = tiny.context()
    exact = heads(ctx)(embeddings(ctx), ratios(), labels())
    low = heads(ctx).bfloat16()(embeddings(ctx), ratios(), labels())
    torch.testing.assert_close(low.float(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("blocks", "expected"), [(None, (0, 1)), ((-1,), (1,)), ((0, -1), (0, 1))], ids=["default", "last", "both"]
)
def test_blocks(blocks: tuple[int, ...] | None, expected: tuple[int, ...]) -> None:
    assert heads(tiny.context(), blocks=blocks).blocks == expected


def test_six_heads_spread_over_a_deep_teacher() -> None:
    ctx = tiny.context()
    assert ctx.teacher is not None
    ctx.teacher.depth = 24
    assert heads(ctx).blocks == (3, 7, 11, 15, 19, 23)


def test_faults_of_teacher_features_are_named() -> None:
    ctx = tiny.context()
    with pytest.raises(PluginError, match=r"\[2\] not in this teacher, which has blocks 0 to 1"):
        heads(ctx, blocks=(0, 2))
    with pytest.raises(ValidationError):
        TeacherFeatures(blocks=())
    with pytest.raises(PluginError, match="`teacher:`"):
        heads(replace(ctx, teacher=None))


# Pixels


@pytest.fixture(scope="module")
def timm() -> object:
    return pytest.importorskip("timm")


def pixels(classes: int = 3, **settings: object) -> PixelHeads:
    torch.manual_seed(0)
    made = Pixels(**settings)  # type: ignore[arg-type]
    return made.build(Context(ImageShape(1, 28, 28), tuple(map(str, range(classes))), make=lambda spec: None))


def drawings(channels: int = 1, size: int = 28) -> Tensor:
    return torch.rand(N, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frozen", [False, True])
def test_pixels_score_each_gray_image_by_itself(timm: object, frozen: bool) -> None:
    net = pixels(frozen=frozen)
    net.train()  # as a player would leave it
    check_samples_apart(net, drawings(), 1e-5)
    assert net(drawings(), ratios(), labels()).shape == (N, 3)


def test_pixels_give_gradients_to_the_image(timm: object) -> None:
    for frozen in (False, True):
        net = pixels(frozen=frozen)
        x = drawings().requires_grad_()
        net(x, ratios(), labels()).sum().backward()
        assert x.grad is not None
        assert (x.grad.flatten(1).abs().sum(1) > 0).all()
        for held in net._fixed:
            assert all(p.grad is None for p in held.parameters())


def test_a_frozen_backbone_holds_no_trainable_weights(timm: object) -> None:
    net = pixels(frozen=True)
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"heads", "classes"}
    assert {name.split(".")[0] for name in net.state_dict()} == {"heads", "classes"}
    (held,) = net._fixed
    assert not any(p.requires_grad for p in held.parameters())
    loose = pixels()
    assert any(name.startswith("backbone.") for name, p in loose.named_parameters() if p.requires_grad)


def test_pixels_know_the_class(timm: object) -> None:
    net, x = pixels(), drawings()
    assert torch.equal(net(x, ratios(), labels()), net(x, ratios(), Cond(torch.zeros(N, dtype=torch.long))))
    for table in net.classes.parameters():  # zero at first; once trained, the class counts
        torch.nn.init.normal_(table)
    assert (net(x, ratios(), labels()) - net(x, ratios(), Cond(torch.full((N,), -1)))).abs().min() > 1e-4


def test_pixels_of_gray_and_its_three_channels_agree_and_size_resizes(timm: object) -> None:
    net = pixels(size=16, stages=(2,))
    x = drawings()
    torch.testing.assert_close(
        net(x, ratios(), labels()), net(x.expand(-1, 3, -1, -1).contiguous(), ratios(), labels())
    )
    assert net(drawings(3, 50), ratios(), labels()).shape == (N, 1)


def test_unknown_backbones_and_stages_are_named(timm: object) -> None:
    with pytest.raises(PluginError, match=r"timm cannot make `resnet10z`.*Unknown model"):
        pixels(backbone="resnet10z")
    with pytest.raises(PluginError, match=r"timm cannot make `resnet10t` with stages \[9\]"):
        pixels(stages=(9,))


def test_a_download_that_fails_is_told(timm: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **settings: object) -> None:
        raise FileNotFoundError("no connection\nmore")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(WeightsError, match=r"could not download timm's weights of `resnet10t`: no connection$"):
        pixels(pretrained=True)


def test_without_timm_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PluginError, match=r"needs timm: run `pip install 'softdimo\[timm\]'`"):
        pixels()
