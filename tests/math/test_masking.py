"""Exact-count masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softdimo.kinds import TokenShape
from softdimo.math.masking import apply_mask, exact_count_mask

ratios = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6)
shapes = st.builds(TokenShape, st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.just(8))


@given(ratios, shapes, st.integers(0, 2**31))
def test_count_is_exact(ratio, shape, seed):
    ratio = torch.tensor(ratio)
    mask = exact_count_mask(ratio, shape, torch.Generator().manual_seed(seed))
    assert mask.dtype == torch.bool
    assert mask.shape == (len(ratio), shape.L, shape.G)
    expected = [max(1, round(r)) for r in (ratio * shape.units).tolist()]
    assert mask.flatten(1).sum(1).tolist() == expected


def test_every_unit_is_equally_likely():
    shape = TokenShape(2, 3, 2, 4)
    mask = exact_count_mask(torch.full((20_000,), 0.5), shape, torch.Generator().manual_seed(0))
    assert (mask.float().mean(0) - 0.5).abs().max() < 0.015


def test_groups_are_masked_independently():
    shape = TokenShape(16, 16, 2, 4)
    mask = exact_count_mask(torch.full((200,), 0.5), shape, torch.Generator().manual_seed(0)).float()
    one, other = mask[..., 0].flatten() - 0.5, mask[..., 1].flatten() - 0.5
    assert abs((one * other).mean().item()) < 0.25 * 0.02


def test_same_generator_same_mask_and_fresh_ones_after():
    shape, ratio = TokenShape(4, 4, 1, 4), torch.full((3,), 0.5)
    rng = torch.Generator().manual_seed(1)
    first, second = exact_count_mask(ratio, shape, rng), exact_count_mask(ratio, shape, rng)
    assert torch.equal(first, exact_count_mask(ratio, shape, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_of_the_ratio(dtype):
    mask = exact_count_mask(torch.tensor([0.5, 1.0], dtype=dtype), TokenShape(4, 4, 2, 4), torch.Generator())
    assert mask.flatten(1).sum(1).tolist() == [16, 32]


def test_apply_mask_changes_masked_units_only():
    rng = torch.Generator().manual_seed(0)
    shape = TokenShape(4, 4, 2, 8)
    tokens = torch.randint(8, (3, 16, 2), generator=rng)
    before = tokens.clone()
    mask = exact_count_mask(torch.tensor([0.2, 0.5, 1.0]), shape, rng)
    masked = apply_mask(tokens, mask, shape.V)
    assert (masked[mask] == 8).all()
    assert torch.equal(masked[~mask], tokens[~mask])
    assert torch.equal(tokens, before)
