"""x_init and the noise on its embedding."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from softdimo.kinds import TokenShape
from softdimo.math.init import Init, Warmup

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "schedules.json").read_text())


@given(st.floats(0, 1), st.integers(0, 2**31))
def test_tokens_hold_the_exact_number_of_masks(r_init, seed):
    shape = TokenShape(3, 5, 2, 7)
    tokens = Init(r_init=r_init).tokens(4, shape, torch.Generator().manual_seed(seed), "cpu")
    assert tokens.shape == (4, 15, 2)
    assert tokens.dtype == torch.int64
    masked = tokens == shape.V
    expected = max(1, round(torch.tensor(r_init).mul(30).item()))
    assert masked.flatten(1).sum(1).tolist() == [expected] * 4
    assert ((tokens[~masked] >= 0) & (tokens[~masked] < shape.V)).all()


@pytest.mark.parametrize(("ratio", "count"), RECORDED["dimo_student_init_masked_count"]["values"].items())
def test_count_is_the_recorded_one(ratio, count):
    tokens = Init(r_init=float(ratio)).tokens(2, TokenShape(16, 16, 1, 5), torch.Generator(), "cpu")
    assert (tokens == 5).flatten(1).sum(1).tolist() == [count] * 2


def test_visible_tokens_are_uniform():
    shape = TokenShape(16, 16, 1, 4)
    tokens = Init(r_init=0.5).tokens(300, shape, torch.Generator().manual_seed(0), "cpu")
    share = torch.bincount(tokens[tokens < 4], minlength=4) / (tokens < 4).sum()
    assert (share - 0.25).abs().max() < 0.01


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.9])
def test_noise_preserves_the_variance(sigma):
    rng = torch.Generator().manual_seed(0)
    rms = torch.tensor(0.02)
    e = rms * torch.randn(8, 64, 256, generator=rng)
    noisy = Init(sigma=sigma).perturb(e, rms, rng)
    assert noisy.square().mean().sqrt().item() == pytest.approx(0.02, rel=0.01)
    kept = (noisy * e).mean() / e.square().mean()
    assert kept.item() == pytest.approx((1 - sigma**2) ** 0.5, abs=0.01)


def test_unit_noise_ignores_the_table():
    e = torch.zeros(4, 64, 256)
    noisy = Init(sigma=0.3, noise_rms="unit").perturb(e, 0.02, torch.Generator().manual_seed(0))
    assert noisy.square().mean().sqrt().item() == pytest.approx(0.3, rel=0.01)


def test_no_noise_leaves_the_embedding():
    e = torch.randn(2, 3, 4)
    assert torch.equal(Init(sigma=0).perturb(e, 1.0, torch.Generator()), e)


def test_noise_keeps_precision_and_passes_gradients():
    e = torch.randn(2, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    noisy = Init(sigma=0.6).perturb(e, torch.tensor(0.5), torch.Generator())
    assert noisy.dtype == torch.bfloat16
    noisy.sum().backward()
    assert torch.allclose(e.grad, torch.full_like(e, 0.8))


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ("linear", [0, 0.25, 0.5, 1, 1]),
        ("cosine", [0, 0.5 - 0.125**0.5, 0.5, 1, 1]),
        ("exponential", [0, 1 - math.exp(-0.25), 1 - math.exp(-0.5), 1 - math.exp(-1), 1 - math.exp(-2)]),
    ],
)
def test_noise_grows_over_the_iterations(shape, parts):
    init = Init(r_init=0.5, sigma=0.4, warmup=Warmup(shape=shape, over=8))
    assert [init.at(k).sigma for k in (0, 2, 4, 8, 16)] == pytest.approx([0.4 * part for part in parts])
    assert init.at(2) == Init(r_init=0.5, sigma=init.at(2).sigma)
    assert Init(sigma=0.4).at(3).sigma == 0.4


@pytest.mark.parametrize(
    "wrong", [{"r_init": 1.2}, {"sigma": -0.1}, {"noise_rms": "tables"}, {"noise": 1}, {"warmup": {"over": 0}}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Init(**wrong)
