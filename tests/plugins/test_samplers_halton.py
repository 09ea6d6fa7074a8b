"""The Halton samplers: an order that visits every cell, exact points, sharpness, counts."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softdimo.errors import RecipeError
from softdimo.kinds import TokenShape
from softdimo.math.guidance import Guidance
from softdimo_plugins.samplers.halton import Confidence, Halton, halton_order
from tests.helpers import CountingTeacher, labels, rng


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 4), (9, 9), (16, 16), (24, 24), (50, 50)])
def test_the_order_visits_every_position_once(rows, cols):
    assert sorted(halton_order(rows, cols)) == list(range(rows * cols))


def test_the_first_positions_are_those_of_the_points():
    """Radical inverses of 1, 2, 3, ... in bases 2 and 3: exact thirds fall on the cell that they begin."""
    points = [(Fraction(1, 2), Fraction(1, 3)), (Fraction(1, 4), Fraction(2, 3)), (Fraction(3, 4), Fraction(1, 9))]
    for size in (9, 16, 24):
        expected = tuple(int(size * a) * size + int(size * b) for a, b in points)
        assert halton_order(size, size)[:3] == expected


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from([Halton, Confidence]),
    steps=st.integers(1, 12),
    groups=st.integers(1, 3),
    schedule=st.sampled_from(["arccos", "cosine", "linear", "square", "root", "uniform"]),
    seed=st.integers(0, 99),
)
def test_every_unit_is_revealed_once(kind, steps, groups, schedule, seed):
    shape = TokenShape(3, 4, groups, 3)
    sampler = kind(steps=steps, schedule=schedule, guidance=Guidance(scale=2.0))
    counts = sampler.counts(CountingTeacher(shape))
    assert len(counts) == steps
    assert min(counts) >= 0
    assert counts[0] >= 1
    assert sum(counts) == shape.units
    tokens = sampler.sample(CountingTeacher(shape), labels(5), rng(seed))
    assert int(tokens.max()) < shape.V


class Watching(CountingTeacher):
    """Keeps the masks that it is shown."""

    def embed(self, tokens):
        self.seen = [*getattr(self, "seen", []), (tokens == self.shape.V)[..., 0]]
        return super().embed(tokens)


def test_positions_are_revealed_in_the_order():
    net = Watching(TokenShape(4, 4, 1, 5))
    sampler = Halton(steps=5)
    sampler.sample(net, labels(2), rng())
    order, done = halton_order(4, 4), 0
    for masked, n in zip(net.seen, sampler.counts(net), strict=True):
        assert masked.all(0).nonzero()[:, 0].tolist() == sorted(order[done:])
        done += n


def test_randomize_rolls_the_order_of_every_image():
    net = Watching(TokenShape(4, 4, 1, 5))
    Halton(steps=16, schedule="uniform", guidance=Guidance(), randomize=True).sample(net, labels(40), rng())
    order = list(halton_order(4, 4))
    first = [(~row).nonzero()[0].item() for row in net.seen[1]]
    assert len(set(first)) > 8
    for image, start in enumerate(first):
        at = order.index(start)
        third = (~net.seen[3][image]).nonzero()[:, 0].tolist()
        assert sorted(third) == sorted((order * 2)[at : at + 3])


def test_sharpness_runs_between_its_ends_and_is_halved_in_the_warmup():
    sampler = Halton(steps=5, sharpness=(1.0, 3.0), power=2.0, warmup=2)
    assert [sampler.factor(i) for i in range(5)] == [0.5, 1.125, 4.0, 6.25, 9.0]
    assert Halton(steps=1, sharpness=(0.5, 3.0)).factor(0) == 0.5


def test_sharpness_multiplies_what_temperature_divides():
    net = CountingTeacher(TokenShape(3, 4, 1, 5))
    sharp = Halton(steps=3, sharpness=(4.0, 4.0)).sample(net, labels(50), rng(1))
    cold = Halton(steps=3, temperature=0.25).sample(net, labels(50), rng(1))
    assert torch.equal(sharp, cold)
    assert not torch.equal(sharp, Halton(steps=3).sample(net, labels(50), rng(1)))


def test_top_k_of_one_is_greedy():
    net = CountingTeacher(TokenShape(3, 4, 1, 5))
    a, b = (Halton(steps=3, top_k=1).sample(net, labels(9), rng(seed)) for seed in (1, 2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [Halton, Confidence])
def test_more_steps_than_units_is_refused(kind):
    with pytest.raises(RecipeError, match="13 sampling steps for 12"):
        kind(steps=13).sample(CountingTeacher(TokenShape(3, 4, 1, 5)), labels(2), rng())
