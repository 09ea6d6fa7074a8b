"""Mask ratios and step counts, against recorded reference values and their definitions."""

import json
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softdimo.errors import RecipeError
from softdimo.math.schedules import Schedule, mask_ratio, masked_counts, progress_at, reveal_counts, sample_ratio

NAMES = get_args(Schedule)
RECORDED = json.loads((Path(__file__).parents[1] / "data" / "schedules.json").read_text())
names = pytest.mark.parametrize("name", NAMES)


@names
def test_ratio_falls_from_one_to_zero(name):
    r = mask_ratio(name, torch.linspace(0, 1, 1001))
    assert r[0] == 1
    assert r[-1] == 0
    assert (r.diff() < 0).all()


@names
def test_progress_inverts_the_ratio(name):
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(progress_at(name, mask_ratio(name, u)), u, atol=1e-7)


@pytest.mark.parametrize("name", ["root", "linear", "square", "cosine", "arccos"])
def test_ratio_is_the_recorded_one(name):
    recorded = RECORDED["mask_ratio_functions"]
    expected = torch.tensor(recorded["maskbit_sampling_ratio_clamped"][name])
    assert torch.allclose(mask_ratio(name, torch.tensor(recorded["r"])).clamp_min(1e-6), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["cosine", "arccos"])
def test_training_ratio_is_the_recorded_one(name):
    recorded = RECORDED["mask_ratio_functions"]
    expected = torch.tensor(recorded["maskgit_v1"][name])
    assert torch.allclose(mask_ratio(name, torch.tensor(recorded["r"])), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("name", "mean"),
    [("arccos", 0.637), ("cosine", 0.637), ("linear", 0.5), ("uniform", 0.5), ("square", 2 / 3), ("root", 1 / 3)],
)
def test_mean_ratio(name, mean):
    r = sample_ratio(name, 200_000, torch.Generator().manual_seed(0), "cpu")
    assert r.shape == (200_000,)
    assert abs(r.mean().item() - mean) < 2e-3


def test_cosine_puts_more_mass_at_the_ends():
    ends = {}
    for name in ("arccos", "cosine"):
        r = sample_ratio(name, 200_000, torch.Generator().manual_seed(0), "cpu")
        ends[name] = ((r > 0.9).float().mean().item(), (r < 0.1).float().mean().item())
    assert ends["cosine"] == pytest.approx((0.287, 0.064), abs=5e-3)
    assert ends["arccos"] == pytest.approx((0.156, 0.012), abs=5e-3)


@pytest.mark.parametrize("name", ["root", "linear", "square", "cosine", "arccos"])
def test_reveal_counts_are_the_recorded_ones(name):
    recorded = RECORDED["maskgit_tokens_revealed_per_step"]
    for steps, counts in recorded["values"][name].items():
        assert reveal_counts(name, int(steps), recorded["L"]) == counts


@pytest.mark.parametrize("name", ["arccos", "cosine", "linear"])
def test_masked_counts_are_the_recorded_ones(name):
    recorded = RECORDED["maskbit_masked_at_step_start"]
    for steps, counts in recorded["values"][name].items():
        assert masked_counts(name, int(steps), recorded["entries"]) == counts


@given(st.sampled_from(NAMES), st.data())
def test_counts_always_commit_everything(name, data):
    units = data.draw(st.integers(1, 400))
    steps = data.draw(st.integers(1, units))
    counts = reveal_counts(name, steps, units)
    assert len(counts) == steps
    assert sum(counts) == units
    assert min(counts) >= 1
    masked = [*masked_counts(name, steps, units), 0]
    assert masked[0] == units
    assert all(after < before for before, after in pairwise(masked))


@names
def test_one_step_commits_everything(name):
    assert reveal_counts(name, 1, 256) == [256]
    assert masked_counts(name, 1, 256) == [256]


def test_uniform_commits_equal_numbers():
    assert reveal_counts("uniform", 8, 256) == [32] * 8
    assert set(reveal_counts("uniform", 32, 49)) == {1, 2}


@pytest.mark.parametrize("steps", [0, -1, 17])
@pytest.mark.parametrize("count", [reveal_counts, masked_counts])
def test_impossible_steps_are_refused(count, steps):
    with pytest.raises(RecipeError, match="between 1 and 16 steps"):
        count("arccos", steps, 16)


def test_unknown_schedule_names_the_choices():
    with pytest.raises(RecipeError, match="'sine'; choose one of arccos, cosine"):
        mask_ratio("sine", torch.rand(2))
