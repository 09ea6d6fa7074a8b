"""Exponential and Gumbel noise: their laws, and what they are drawn from."""

import math

import pytest
import torch

from softdimo.math.noise import exponential, gumbel
from softdimo.math.rollout import categorical

N = 200_000


def drawn(fn, dtype=torch.float32, n=N, seed=0):
    return fn(torch.empty(n, dtype=dtype), torch.Generator().manual_seed(seed))


def farthest(x, law):
    """Kolmogorov's distance between a sample and a distribution function."""
    x = x.double().sort().values
    ranks = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    return max(float((law(x) - ranks[1:]).abs().max()), float((law(x) - ranks[:-1]).abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("fn", "law"), [(exponential, lambda x: 1 - (-x).exp()), (gumbel, lambda x: (-(-x).exp()).exp())]
)
def test_the_noise_has_its_law(fn, law, dtype):
    x = drawn(fn, dtype)
    assert x.dtype == dtype
    assert x.isfinite().all()
    assert farthest(x, law) < 1.95 / math.sqrt(N)  # one in a thousand samples is farther


def test_the_tail_is_as_fine_as_the_numbers_are():
    x = drawn(exponential, n=2_000_000)
    assert (x >= 0).all()
    assert x.max() > 12
    assert len(x[x < 1e-5].unique()) == int((x < 1e-5).sum()) > 5


def test_the_generator_decides():
    assert torch.equal(drawn(exponential), drawn(exponential))
    assert not torch.equal(drawn(exponential), drawn(exponential, seed=1))


def test_a_sample_has_the_frequencies_of_the_softmax():
    z = torch.tensor([2.0, 0.0, -1.0, -30.0])
    tokens = categorical(z.expand(N, 4), torch.Generator().manual_seed(0))
    share = torch.bincount(tokens, minlength=4) / N
    assert torch.allclose(share, z.softmax(-1), atol=4 * math.sqrt(0.25 / N))
    assert share[3] == 0
