"""One convention of guidance: the batched pass, ramps, and what other conventions' numbers mean."""

import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from softdimo.kinds import NULL_LABEL, Cond, Output
from softdimo.math.guidance import Convention, Guidance, from_scale, guided_logits, to_scale
from softdimo.math.schedules import progress_at, sample_ratio

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "schedules.json").read_text())


class Net(nn.Module):
    """Logits [B L G V] that depend on the embedding and on the label; counts its passes."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.table = torch.randn(6, 5, 2, 7, generator=rng, dtype=torch.float64).to(dtype)
        self.batches = []

    def null(self, cond):
        return Cond(torch.full_like(cond.labels, NULL_LABEL), cond.prompts, cond.tensors)

    def forward(self, e, cond, at=None, features=()):
        self.batches.append(len(e))
        logits = e[..., :2, None].tanh() * self.table[cond.labels] + self.table[cond.labels].square()
        return Output(logits if at is None else logits[at])


@pytest.fixture
def batch():
    e = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return e, Cond(torch.tensor([0, 3, 4]), ("a", "b", "c"), {"text": torch.zeros(3, 2)})


def reference(net, e, cond, scale):
    z_c, z_u = net(e, cond).logits, net(e, net.null(cond)).logits
    return z_u + torch.as_tensor(scale, dtype=e.dtype).view(-1, 1, 1, 1) * (z_c - z_u)


@pytest.mark.parametrize("scale", [2.0, 0.0, 0.3, 7.5, -1.0])
def test_one_number(batch, scale):
    e, cond = batch
    net = Net()
    got = guided_logits(net, e, cond, scale)
    assert net.batches == [6]
    assert torch.allclose(got, reference(net, e, cond, scale), atol=1e-12)


def test_one_scale_per_sample(batch):
    e, cond = batch
    scale = torch.tensor([1.0, 2.5, 0.2], dtype=torch.float64)
    assert torch.allclose(guided_logits(Net(), e, cond, scale), reference(Net(), e, cond, scale), atol=1e-12)


@pytest.mark.parametrize("scale", [2.0, torch.tensor([1.0, 2.5, 0.2])])
def test_at_units_keeps_their_order(batch, scale):
    e, cond = batch
    at = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(2)) < 0.4
    assert at.flatten(1).sum(1).unique().numel() > 1
    got = guided_logits(Net(), e, cond, scale, at)
    assert got.shape == (int(at.sum()), 7)
    assert torch.allclose(got, reference(Net(), e, cond, scale)[at], atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1, torch.ones(3)])
def test_scale_one_skips_the_unconditional_half(batch, scale):
    e, cond = batch
    net = Net()
    got = guided_logits(net, e, cond, scale)
    assert net.batches == [3]
    assert torch.equal(got, net(e, cond).logits)


def test_low_precision_is_combined_in_float32(batch):
    e, cond = batch
    net, e = Net(torch.bfloat16), e.bfloat16()
    z_c, z_u = net(e, cond).logits.float(), net(e, net.null(cond)).logits.float()
    for scale in (3.0, torch.full((3,), 3.0)):
        got = guided_logits(net, e, cond, scale)
        assert got.dtype == torch.float32
        assert torch.allclose(got, z_u + 3 * (z_c - z_u), atol=1e-5)
    assert guided_logits(net, e, cond, 1.0).dtype == torch.float32


def test_gradient_reaches_the_embedding(batch):
    e, cond = batch
    e.requires_grad_()
    guided_logits(Net(), e, cond, torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert e.grad[..., :2].abs().min() > 0


@pytest.mark.parametrize(
    ("convention", "formula"),
    [
        ("dimo", lambda c, u, s: u + s * (c - u)),
        ("maskgit", lambda c, u, w: (1 + w) * c - w * u),
        ("maskbit", lambda c, u, g: c + g * (c - u)),
        ("maskgen", lambda c, u, g: c + g * (c - u)),
    ],
)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 3.0, 7.1])
def test_conventions(convention, formula, value):
    c, u = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = to_scale(value, convention)
    assert torch.allclose(u + s * (c - u), formula(c, u, value))
    assert from_scale(s, convention) == pytest.approx(value)
    assert to_scale(from_scale(value, convention), convention) == pytest.approx(value)


def test_no_guidance_in_every_convention():
    assert {c: from_scale(1.0, c) for c in get_args(Convention)} == {
        "dimo": 1,
        "maskgit": 0,
        "maskbit": 0,
        "maskgen": 0,
    }


def test_constant_by_default():
    assert Guidance().at(0.3) == 1.0
    assert Guidance(scale=2.0).at(0.0) == Guidance(scale=2.0).at(1.0) == 2.0


@pytest.mark.parametrize("steps", [4, 8, 12, 16])
def test_maskgit_ramp(steps):
    """s = 1 + w i / (T - 1)."""
    ramp = Guidance(scale=to_scale(3.0, "maskgit"), ramp="linear")
    got = [ramp.at(i / (steps - 1)) for i in range(steps)]
    fractions = RECORDED["maskgit_cfg_ramp"]["values"][str(steps)]
    assert got == pytest.approx([1 + 3.0 * f for f in fractions], abs=1e-12)


@pytest.mark.parametrize("power", [2.5, 3.0])
@pytest.mark.parametrize("steps", [4, 8, 12, 16, 64])
def test_maskbit_ramp(power, steps):
    """s = 1 + G (1 - cos(pi (i / N)^p)) / 2."""
    ramp = Guidance(scale=to_scale(7.1, "maskbit"), ramp="cosine", power=power)
    got = [ramp.at(i / steps) for i in range(steps)]
    fractions = RECORDED["maskbit_guidance_fraction"]["values"][f"p={power}"][str(steps)]
    assert got == pytest.approx([1 + 7.1 * f for f in fractions], abs=1e-12)


def test_maskgen_ramp():
    """g = 1 + 11 (1 - cos(pi (k + 1) / 16)) / 2, then s = 1 + g."""
    ramp = Guidance(start=to_scale(1.0, "maskgen"), scale=to_scale(12.0, "maskgen"), ramp="cosine")
    got = [from_scale(ramp.at((k + 1) / 16), "maskgen") for k in range(16)]
    assert got[:3] == pytest.approx([1.106, 1.419, 1.927], abs=1e-3)
    assert got[-2:] == pytest.approx([11.894, 12.0], abs=1e-3)


def test_scale_at_mask_ratios_of_training():
    ramp = Guidance(scale=to_scale(7.1, "maskbit"), ramp="cosine", power=3)
    ratio = torch.tensor([0.9, 0.75, 0.5, 0.25])
    assert torch.allclose(ramp.at(progress_at("arccos", ratio)), torch.tensor([1.0, 1.05, 2.97, 7.35]), atol=6e-3)
    drawn = sample_ratio("arccos", 200_000, torch.Generator().manual_seed(0), "cpu")
    assert ramp.at(progress_at("arccos", drawn)).mean().item() == pytest.approx(2.61, abs=0.03)


@pytest.mark.parametrize("ramp", ["constant", "linear", "cosine"])
def test_tensor_and_number_agree(ramp):
    guidance = Guidance(scale=5.0, ramp=ramp, start=1.5, power=2.0)
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert guidance.at(u).tolist() == pytest.approx([guidance.at(x) for x in u.tolist()])
    assert isinstance(guidance.at(0.5), float)
    if ramp != "constant":
        assert guidance.at(u)[[0, -1]].tolist() == pytest.approx([1.5, 5.0])
        assert math.isclose(
            guidance.at(0.5), 1.5 + 3.5 * (0.25 if ramp == "linear" else (1 - math.cos(math.pi / 4)) / 2)
        )
