"""Test-time search: monotone where it must be, never below its starts, and priced as it is."""

import itertools

import pytest
import torch

from softdimo.errors import PluginError, TrainingError
from softdimo.kinds import Cond, Found
from softdimo_plugins.search.best_of_n import BestOfN
from softdimo_plugins.search.tteo import TTEO
from tests.helpers import CountingTeacher, context, labels, rng

TARGETS = torch.tensor([0.5, -1.0, 2.0])


def generator(e, cond):
    """The input embedding [B L D] as an image."""
    return e[:, None]


def quadratic(img, cond):
    """-|e - target of the label|^2, at most 0."""
    return -(img[:, 0] - TARGETS[cond.labels].view(-1, 1, 1)).square().sum((1, 2))


def start(cond, rng):
    return torch.randn(len(cond), 4, 3, generator=rng)


def run(method, score=quadratic, n=6, seed=0, generator=generator) -> Found:
    return method.run(generator, score, start, labels(n), rng(seed))


def test_small_steps_up_a_quadratic_never_go_down():
    found = run(TTEO(starts=3, iterations=20, optimizer="sgd", lr=0.05, unit=1.0))
    assert found.trace.shape == (3, 21, 6)
    assert (found.trace.diff(dim=1) > 0).all()
    # gradient ascent on -d^2 shrinks d by 1 - 2 lr per step
    assert torch.allclose(found.trace[:, 20], found.trace[:, 0] * 0.9 ** (2 * 20), rtol=1e-3)


def test_the_unit_scales_the_step():
    """u = e / unit moves: de = lr unit^2 dR/de for sgd, lr unit for a first step of adam."""
    e0 = start(labels(6), rng())
    gradient = 2 * (TARGETS[labels(6).labels].view(-1, 1, 1) - e0)
    sgd = run(TTEO(starts=1, iterations=1, optimizer="sgd", lr=0.2, unit=0.1))
    assert torch.allclose(sgd.path[1], e0 + 0.2 * 0.01 * gradient)
    adam = run(TTEO(starts=1, iterations=1, lr=0.2, unit=0.1))
    assert torch.allclose(adam.path[1], e0 + 0.2 * 0.1 * gradient.sign(), atol=1e-6)


def test_the_unit_is_the_teachers_table_rms():
    net = CountingTeacher()
    built = TTEO().build(context(teacher=net))
    assert built.unit == pytest.approx(float(net.table_rms().detach()))
    assert TTEO(unit=2.0).build(context(teacher=net)).unit == 2.0
    with pytest.raises(PluginError, match="unit of `lr` is unknown"):
        run(TTEO())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_huge_steps_are_never_worse_than_the_best_start(optimizer):
    wild = run(TTEO(starts=3, iterations=5, optimizer=optimizer, lr=50.0, unit=1.0))
    assert (wild.trace[:, -1] < wild.trace[:, 0]).all(), "the steps do harm"
    assert torch.equal(wild.score, wild.trace[:, 0].max(0).values)
    assert torch.equal(wild.score, run(BestOfN(n=3)).score)


@pytest.mark.parametrize("method", [TTEO(starts=3, iterations=4, lr=0.3, unit=1.0), BestOfN(n=5)])
def test_the_found_object_has_the_found_score(method):
    found = run(method)
    assert torch.equal(quadratic(generator(found.e, labels(6)), labels(6)), found.score)
    assert torch.equal(found.score, found.trace.flatten(0, 1).max(0).values)


def test_the_path_is_that_of_the_winning_start():
    found = run(TTEO(starts=4, iterations=3, lr=0.3, unit=1.0))
    assert found.path.shape == (4, 6, 4, 3)
    scores = torch.stack([quadratic(generator(e, labels(6)), labels(6)) for e in found.path])
    winner = found.trace.max(1).values.argmax(0)
    assert torch.equal(scores, found.trace[winner, :, torch.arange(6)].T)
    assert torch.equal(scores.max(0).values, found.score)


def test_starts_are_searched_apart_and_conditions_too():
    """The same start gives the same climb in whatever company."""
    together = run(TTEO(starts=1, iterations=5, lr=0.3, unit=1.0), n=6)
    conditions = labels(6)
    starts = start(conditions, rng())
    for i in (0, 4):
        alone = TTEO(starts=1, iterations=5, lr=0.3, unit=1.0).run(
            generator, quadratic, lambda c, r, i=i: starts[i : i + 1], conditions[i : i + 1], rng()
        )
        assert torch.allclose(alone.trace[:, :, 0], together.trace[:, :, i])


def test_more_starts_cannot_be_worse():
    scores = [run(BestOfN(n=n), n=30).score for n in (1, 2, 4, 8, 16)]
    for fewer, more in itertools.pairwise(scores):
        assert (more >= fewer).all()
        assert (more > fewer).any()
    few, many = (run(TTEO(starts=s, iterations=2, lr=0.1, unit=1.0), n=30).score for s in (1, 4))
    assert (many >= few).all()


def test_optimization_beats_best_of_n_at_equal_cost():
    found = run(TTEO(starts=2, iterations=5, optimizer="sgd", lr=0.1, unit=1.0), n=60)
    equal = run(BestOfN(n=round(found.passes)), n=60)
    assert found.passes == equal.passes == 32
    assert found.score.mean() > equal.score.mean() + 1


def test_screening_takes_the_best_candidates_as_starts():
    every = run(BestOfN(n=9)).trace[:, 0]
    found = run(TTEO(candidates=9, starts=3, iterations=4, lr=0.1, unit=1.0))
    assert torch.equal(found.trace[:, 0], every.topk(3, dim=0).values)
    assert (found.score >= every.max(0).values).all()
    assert found.screening == 9
    assert found.passes == 9 + 3 * 13
    with pytest.raises(ValueError, match="candidates: 2 are fewer than starts: 3"):
        TTEO(candidates=2, starts=3)


def test_screening_is_a_better_use_of_the_same_cost():
    """A few good starts, optimized, against more random ones at no lower cost."""
    screened = run(TTEO(candidates=12, starts=1, iterations=4, optimizer="sgd", lr=0.05, unit=1.0), n=60)
    random = run(TTEO(starts=2, iterations=4, optimizer="sgd", lr=0.05, unit=1.0), n=60)
    assert screened.passes <= random.passes
    assert screened.score.mean() > random.score.mean()


@pytest.mark.parametrize("starts", [1, 3])
@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("candidates", [None, 5])
def test_forward_equivalents_are_counted_passes(starts, iterations, candidates):
    """Counted by hooks on a network: a row forward is 1, a row that a gradient comes back to is 2."""
    net = CountingTeacher()
    seen = {"forward": 0, "backward": 0}

    def images(e, cond):
        z = net(e, cond).logits
        seen["forward"] += len(e)
        if z.requires_grad and e.requires_grad:
            e.register_hook(lambda g: seen.update(backward=seen["backward"] + len(g)))
        return z.flatten(2)[:, None]

    def begin(cond, r):
        return torch.randn(len(cond), 6, 8, generator=r)

    method = TTEO(starts=starts, iterations=iterations, candidates=candidates, unit=1.0)
    found = method.run(images, lambda img, cond: img.mean((1, 2, 3)), begin, labels(5), rng())
    assert seen["forward"] == net.rows == 5 * (starts * (iterations + 1) + (candidates or 0))
    assert seen["backward"] == 5 * starts * iterations
    assert found.passes == (seen["forward"] + 2 * seen["backward"]) / 5
    net.rows = 0
    found = BestOfN(n=starts).run(images, lambda img, cond: img.mean((1, 2, 3)), begin, labels(5), rng())
    assert found.passes == net.rows / 5 == starts


def test_weights_get_no_gradient():
    net = CountingTeacher()
    TTEO(starts=2, iterations=2, unit=1.0).run(
        lambda e, cond: net(e, cond).logits.flatten(2)[:, None],
        lambda img, cond: img.mean((1, 2, 3)),
        lambda cond, r: torch.randn(len(cond), 6, 8, generator=r),
        labels(4),
        rng(),
    )
    assert all(p.grad is None for p in net.parameters())


def test_a_reward_without_gradient_is_for_best_of_n():
    class Counted:
        differentiable = False

        def __call__(self, img, cond):
            return (img[:, 0] > 0).float().mean((1, 2))

    assert (run(BestOfN(n=8), Counted()).score >= run(BestOfN(n=1), Counted()).score).all()
    assert run(TTEO(starts=8, iterations=0, unit=1.0), Counted()).score.equal(run(BestOfN(n=8), Counted()).score)
    with pytest.raises(PluginError, match=r"not differentiable.*use best_of_n"):
        run(TTEO(unit=1.0), Counted())
    with pytest.raises(PluginError, match="does not depend differentiably"):
        run(TTEO(unit=1.0), lambda img, cond: img.detach().mean((1, 2, 3)))


def test_scores_that_cannot_be_ranked_are_an_error():
    def broken(img, cond):
        return torch.where(cond.labels == 1, torch.nan, quadratic(img, cond))

    for method in (BestOfN(n=2), TTEO(unit=1.0)):
        with pytest.raises(TrainingError, match="not finite"):
            run(method, broken)


def test_the_norm_prior_holds_tokens_at_their_length():
    def longer(img, cond):
        return img[:, 0].norm(dim=-1).sum(1)

    def stretch(prior):
        found = run(TTEO(starts=1, iterations=30, optimizer="sgd", lr=0.02, unit=1.0, norm_prior=prior), longer)
        return float((found.path[-1].norm(dim=-1) / found.path[0].norm(dim=-1)).mean())

    free, held = stretch(0.0), stretch(100.0)
    assert free > 1.3
    assert 1 < held < 1.1


def test_the_prior_is_not_part_of_the_score():
    found = run(TTEO(starts=1, iterations=3, unit=1.0, norm_prior=10.0))
    assert torch.equal(quadratic(generator(found.e, labels(6)), labels(6)), found.score)


@pytest.mark.parametrize("method", [TTEO(starts=2, iterations=3, unit=1.0), BestOfN(n=3)])
def test_a_generator_decides_everything(method):
    a, b, c = (run(method, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.trace, b.trace)
    assert torch.equal(a.e, b.e)
    assert not torch.equal(a.trace, c.trace)


def test_prompts_travel_with_their_starts():
    cond = Cond(torch.tensor([0, 1]), prompts=("a", "b"))

    def score(img, c):
        assert len(c) == len(img)
        assert [{"a": 0, "b": 1}[p] for p in c.prompts] == c.labels.tolist()
        return quadratic(img, c)

    TTEO(starts=3, iterations=1, unit=1.0).run(generator, score, start, cond, rng())
