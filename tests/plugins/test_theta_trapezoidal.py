"""The theta-trapezoidal sampler: it converges to the exact joint, and it ends without masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softdimo.kinds import Cond, TokenShape
from softdimo.math.guidance import Guidance
from softdimo_plugins.samplers.theta_trapezoidal import ThetaTrapezoidal, jump
from softdimo_plugins.teachers.tabular import TabularTeacher
from tests.helpers import CountingTeacher, labels, rng

JOINT = (0.4, 0.1, 0.05, 0.45)
"""Of two coupled coins."""
COINS = TabularTeacher(TokenShape(1, 2, 1, 2), JOINT).eval()


def distance(sampler, n=20_000):
    """Total variation of n samples from the joint; chance makes about 0.005 of it."""
    tokens = sampler.sample(COINS, Cond(torch.zeros(n, dtype=torch.int64)), rng())[..., 0]
    found = torch.bincount(2 * tokens[:, 0] + tokens[:, 1], minlength=4) / n
    return (found - torch.tensor(JOINT)).abs().sum().item() / 2


def test_it_converges_to_the_exact_joint():
    one, two, many = (distance(ThetaTrapezoidal(steps=n, end=1e-4)) for n in (1, 2, 16))
    assert one > 0.1
    assert one / 2 > two > 0.02
    assert many < 0.012


@pytest.mark.parametrize("theta", [0.3, 0.7])
def test_any_theta_converges(theta):
    assert distance(ThetaTrapezoidal(steps=16, theta=theta, end=1e-4)) < 0.015


@settings(max_examples=20, deadline=None)
@given(
    steps=st.integers(1, 9),
    groups=st.integers(1, 3),
    theta=st.floats(0.05, 0.95),
    scale=st.sampled_from([1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_every_unit_gets_a_class(steps, groups, theta, scale, seed):
    shape = TokenShape(3, 4, groups, 3)
    sampler = ThetaTrapezoidal(steps=steps, theta=theta, guidance=Guidance(scale=scale, ramp="linear"))
    tokens = sampler.sample(CountingTeacher(shape), labels(5), rng(seed))
    assert tokens.shape == (5, 12, groups)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < shape.V


def test_one_step_is_legal_and_far_from_exact():
    """One step sees the mask only, then its own first jumps: finite rates, classes only, and not the joint."""
    sampler = ThetaTrapezoidal(steps=1)
    assert sampler.times() == [1.0, 0.01]
    tokens = sampler.sample(COINS, Cond(torch.zeros(500, dtype=torch.int64)), rng())
    assert set(tokens.flatten().tolist()) == {0, 1}
    assert distance(sampler) > 0.05


def test_a_class_is_never_taken_back():
    seen = []
    net = CountingTeacher()
    embed = net.embed
    net.embed = lambda tokens: (seen.append(tokens.clone()), embed(tokens))[1]
    final = ThetaTrapezoidal(steps=6).sample(net, labels(40), rng())
    for before, after in zip(seen, [*seen[1:], final], strict=True):
        assert torch.equal(after[before < net.shape.V], before[before < net.shape.V])
    fractions = [(x == net.shape.V).float().mean() for x in seen]
    assert fractions[0] == 1
    assert fractions[-1] < 0.3


def test_masked_fractions_follow_the_time():
    """With small steps the fraction of masked units at time t is t."""
    seen = []
    net = CountingTeacher(TokenShape(10, 10, 1, 3))
    embed = net.embed
    net.embed = lambda tokens: (seen.append((tokens == net.shape.V).float().mean()), embed(tokens))[1]
    sampler = ThetaTrapezoidal(steps=32)
    sampler.sample(net, labels(30), rng())
    found = torch.stack(seen[:-1:2])
    assert (found - torch.tensor(sampler.times()[:-1])).abs().max() < 0.03


@pytest.mark.parametrize("ramp", ["constant", "linear"])
@pytest.mark.parametrize("steps", [1, 3])
def test_passes_are_what_the_network_sees(ramp, steps):
    net = CountingTeacher()
    sampler = ThetaTrapezoidal(steps=steps, guidance=Guidance(scale=3.0, ramp=ramp))
    sampler.sample(net, labels(10), rng())
    assert net.rows / 10 == sampler.passes() == 2 * (2 * steps + 1) - (ramp == "linear")
    assert ThetaTrapezoidal(steps=steps).passes() == 2 * steps + 1


def test_guidance_follows_the_progress():
    scales = []

    class Watched(Guidance):
        def at(self, progress):
            if isinstance(progress, float):  # it asks itself with a tensor
                scales.append(progress)
            return super().at(progress)

    ThetaTrapezoidal(steps=2, end=0.2, theta=0.5, guidance=Watched(scale=2.0)).sample(
        CountingTeacher(), labels(2), rng()
    )
    assert scales == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_jumps_are_those_of_one_event():
    expected = torch.tensor([[0.2, 0.6, 0.0]]).expand(60_000, 3)
    drawn = jump(expected, rng())
    assert drawn.max() == 3
    found = torch.bincount(drawn, minlength=4) / len(drawn)
    one = 0.8 * torch.tensor(-0.8).exp()
    assert (found - torch.tensor([one / 4, 3 * one / 4, 0, 1 - one])).abs().max() < 0.008
    assert jump(torch.zeros(9, 3), rng()).tolist() == [3] * 9
    assert jump(torch.zeros(0, 3), rng()).shape == (0,)
