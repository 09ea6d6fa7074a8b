"""Relaxations: forward values, backward values, determinism."""

import pytest
import torch

from softdimo.math.soft import Relaxation

KINDS = ["soft", "straight_through", "gumbel", "gumbel_straight_through"]
kinds = pytest.mark.parametrize("kind", KINDS)


def roll(dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    z = (2 * torch.randn(2, 5, 2, 7, generator=rng, dtype=torch.float64)).to(dtype).requires_grad_()
    tokens = torch.multinomial(z.detach().double().softmax(-1).flatten(0, 2), 1, generator=rng).view(2, 5, 2)
    return z, tokens, torch.Generator().manual_seed(seed + 1)


def gradient(relaxation, w, seed=0):
    z, tokens, rng = roll(seed=seed)
    (relaxation(z, tokens, rng) * w).sum().backward()
    return z.grad


def weights():
    return torch.randn(2, 5, 2, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@kinds
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_rows_are_distributions(kind, temperature):
    probs = Relaxation(kind=kind, temperature=temperature)(*roll())
    assert probs.shape == (2, 5, 2, 7)
    assert (probs >= 0).all()
    assert torch.allclose(probs.sum(-1), torch.ones(2, 5, 2, dtype=torch.float64))


def test_soft_is_the_softmax_and_draws_nothing():
    z, tokens, rng = roll()
    state = rng.get_state()
    assert torch.equal(Relaxation(temperature=0.5)(z, tokens, rng), (z / 0.5).softmax(-1))
    assert torch.equal(rng.get_state(), state)


def test_straight_through_shows_exactly_the_sampled_tokens():
    z, tokens, rng = roll(torch.float32)
    probs = Relaxation(kind="straight_through")(z, tokens, rng)
    assert torch.equal(probs, torch.nn.functional.one_hot(tokens, 7).float())


def test_straight_through_backward_is_the_soft_one():
    for temperature in (0.5, 1.0):
        hard = gradient(Relaxation(kind="straight_through", temperature=temperature), weights())
        soft = gradient(Relaxation(kind="soft", temperature=temperature), weights())
        assert torch.equal(hard, soft)
        assert hard.abs().max() > 1e-3


def test_gumbel_straight_through_shares_noise_and_backward_with_gumbel():
    hard = Relaxation(kind="gumbel_straight_through", temperature=0.7)
    soft = Relaxation(kind="gumbel", temperature=0.7)
    assert torch.equal(hard(*roll()).argmax(-1), soft(*roll()).argmax(-1))
    assert set(hard(*roll()).unique().tolist()) == {0.0, 1.0}
    assert torch.equal(gradient(hard, weights()), gradient(soft, weights()))


def test_one_hot_is_a_fixed_point():
    """Where the student is certain, every relaxation is its token's one-hot, and relaxing that changes nothing."""
    _, tokens, rng = roll()
    one_hot = torch.nn.functional.one_hot(tokens, 7).double()
    for kind in KINDS:
        relax = Relaxation(kind=kind)
        once = relax(1000 * one_hot, tokens, rng)
        assert torch.equal(once, one_hot)
        assert torch.equal(relax(1000 * once, tokens, rng), once)


def test_gumbel_samples_follow_the_softmax():
    z = torch.tensor([2.0, 1.0, 0.0, -1.0])
    many = z.expand(1, 40_000, 1, 4)
    tokens = torch.zeros(1, 40_000, 1, dtype=torch.int64)
    hard = Relaxation(kind="gumbel_straight_through")(many, tokens, torch.Generator().manual_seed(0))
    assert torch.allclose(hard.mean((0, 1, 2)), z.softmax(-1), atol=0.01)


@kinds
def test_same_generator_same_result(kind):
    relax = Relaxation(kind=kind)
    assert torch.equal(relax(*roll()), relax(*roll()))


@kinds
def test_low_precision_logits_give_float32(kind):
    z, tokens, rng = roll(torch.bfloat16)
    probs = Relaxation(kind=kind)(z, tokens, rng)
    assert probs.dtype == torch.float32
    probs.square().sum().backward()
    assert z.grad.isfinite().all()


def test_low_temperature_concentrates():
    top = [Relaxation(temperature=t)(*roll()).max(-1).values.mean() for t in (2.0, 1.0, 0.5, 0.1)]
    assert top == sorted(top)
