"""Options of test-time search: ways up, norm priors, patience, and how many go through the networks at once."""

import math

import pytest
import torch

from softdimo.errors import PluginError
from softdimo.kinds import Cond
from softdimo.math.best import best_of, evaluate, named
from softdimo.math.init import Init
from softdimo_plugins.search.ascent import Ascent
from softdimo_plugins.search.best_of_n import BestOfN
from softdimo_plugins.search.norm_prior import log_norm
from softdimo_plugins.search.tteo import TTEO
from tests.helpers import CountingTeacher, context, labels, rng
from tests.plugins.test_search import TARGETS, generator, quadratic, run, start

WAYS = [
    {"optimizer": "sgd", "lr": 0.02},
    {"optimizer": "sgd", "lr": 0.005, "momentum": 0.5},
    {"optimizer": "sgd", "lr": 0.005, "momentum": 0.5, "nesterov": True},
    {"optimizer": "sgd", "lr": 0.02, "clip": 0.5},
    {"optimizer": "normalized", "lr": 0.01},
    {"optimizer": "normalized", "lr": 0.01, "momentum": 0.5, "nesterov": True},
    {"optimizer": "adam", "lr": 0.01},
    {"optimizer": "adam", "lr": 0.01, "clip": 1.0},
]


class Several:
    """Two rewards by name, and their sum."""

    differentiable = True

    def __call__(self, img, cond):
        return self.each(img, cond)[0]

    def each(self, img, cond):
        a, b = quadratic(img, cond), img.mean((1, 2, 3))
        return a + b, {"near": a, "bright": b}


# Ways up


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_small_steps_up_a_smooth_reward_never_go_down(way):
    found = run(TTEO(starts=3, iterations=12, unit=1.0, **way))
    assert (found.trace.diff(dim=1) > 0).all()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_large_steps_are_never_worse_than_the_starts(way):
    found = run(TTEO(starts=3, iterations=4, unit=1.0, **(way | {"lr": 50.0, "clip": None})))
    assert torch.equal(found.score, torch.maximum(found.score, run(BestOfN(n=3)).score))
    assert (found.trace[:, 1] < found.trace[:, 0]).all(), "the steps do harm"


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_that_of_torch(nesterov):
    e = torch.nn.Parameter(start(labels(4), rng()).double())
    mine, climb = e.detach().clone(), Ascent("sgd", 0.1, 0.9, nesterov)
    theirs = torch.optim.SGD([e], lr=0.1, momentum=0.9, nesterov=nesterov, maximize=True)
    for _ in range(5):
        e.grad = torch.autograd.grad(quadratic(generator(e, labels(4)), labels(4)).sum(), e)[0]
        at = mine.clone().requires_grad_()
        mine = climb.step(mine, torch.autograd.grad(quadratic(generator(at, labels(4)), labels(4)).sum(), at)[0])
        theirs.step()
        assert torch.allclose(mine, e.detach(), atol=1e-12)


def test_adam_is_that_of_torch():
    e = torch.nn.Parameter(start(labels(4), rng()).double())
    mine, climb = e.detach().clone(), Ascent("adam", 0.1)
    theirs = torch.optim.Adam([e], lr=0.1, maximize=True)
    for _ in range(5):
        e.grad = torch.autograd.grad(quadratic(generator(e, labels(4)), labels(4)).sum(), e)[0]
        mine = climb.step(mine, e.grad)
        theirs.step()
        assert torch.allclose(mine, e.detach(), atol=1e-10)


def test_a_normalized_step_has_the_length_of_the_rate_however_steep_the_reward():
    for steepness in (1e-3, 1.0, 1e3):
        found = run(
            TTEO(starts=1, iterations=3, optimizer="normalized", lr=0.1, unit=0.3),
            lambda img, cond, k=steepness: k * quadratic(img, cond),
        )
        moved = found.path.diff(dim=0).square().mean((2, 3)).sqrt()
        assert torch.allclose(moved, torch.full_like(moved, 0.1 * 0.3), rtol=1e-4)


def test_without_a_gradient_nothing_moves():
    flat = torch.zeros(2, 4, 3)
    for optimizer in ("adam", "sgd", "normalized"):
        assert torch.equal(Ascent(optimizer, 0.1, clip=1.0).step(flat, torch.zeros_like(flat)), flat)


def test_clipping_bounds_each_samples_gradient():
    gradient = torch.randn(5, 4, 3, generator=rng()) * torch.tensor([0.01, 0.1, 1, 10, 100]).view(-1, 1, 1)
    moved = Ascent("sgd", 1.0, clip=0.5).step(torch.zeros_like(gradient), gradient)
    norms = gradient.flatten(1).norm(dim=1)
    assert torch.allclose(moved.flatten(1).norm(dim=1), norms.clamp(max=0.5))
    assert torch.equal(moved[norms < 0.5], gradient[norms < 0.5])
    cosine = torch.cosine_similarity(moved.flatten(1), gradient.flatten(1))
    assert torch.allclose(cosine, torch.ones(5))


def test_settings_that_make_no_sense_are_refused():
    for settings, said in (
        ({"momentum": 0.9}, "momentum: adam has its own"),
        ({"optimizer": "sgd", "nesterov": True}, "nesterov: looks ahead along a momentum"),
        ({"patience": 0}, "patience"),
        ({"clip": 0}, "clip"),
    ):
        with pytest.raises(ValueError, match=said):
            TTEO(**settings)


# Norm priors


def slope(prior, e, *rest):
    at = e.clone().requires_grad_()
    return torch.autograd.grad(prior(at, *rest).sum(), at)[0]


def test_the_table_prior_is_the_log_density_of_chi():
    e = torch.randn(3, 5, 16, generator=rng(), dtype=torch.float64)
    r = e.norm(dim=-1) / 0.7
    chi2 = torch.distributions.Chi2(torch.tensor(16.0, dtype=torch.float64))
    log_density = chi2.log_prob(r.square()) + (2 * r).log()
    difference = log_norm(e, e, 0.7, "table") - log_density.mean(1)
    assert torch.allclose(difference, difference[:1].expand(3)), "the same up to a constant"
    top = torch.nn.functional.normalize(e, dim=-1) * math.sqrt(15) * 0.7
    assert slope(log_norm, top, top, 0.7, "table").abs().max() < 1e-9


def test_the_prior_about_the_start_is_the_table_prior_to_second_order_about_its_top():
    e = torch.nn.functional.normalize(torch.randn(3, 5, 400, generator=rng(), dtype=torch.float64), dim=-1)
    top = e * math.sqrt(399)
    for stretch in (0.98, 1.03):
        chi = log_norm(top * stretch, top, 1.0, "table") - log_norm(top, top, 1.0, "table")
        assert torch.allclose(log_norm(top * stretch, top, 1.0, "start"), chi, rtol=0.05)
    assert torch.equal(log_norm(top, top, 1.0, "start"), torch.zeros(3, dtype=torch.float64))


def test_the_noise_prior_is_that_of_noise_which_the_search_moves_at_right_angles():
    """Against the density of |eps| itself, for real noise and random moves."""
    L, D, sd = 200, 200, 0.1
    n = L * D
    clean, eps = torch.randn(2, 4, L, D, generator=rng(), dtype=torch.float64)
    e0 = clean + sd * eps
    move = torch.randn(4, L, D, generator=rng(1), dtype=torch.float64)

    def chi(e):
        r = ((e - clean) / sd).flatten(1).norm(dim=1)
        return ((n - 1) * r.log() - r.square() / 2) / L

    for rms in (0.05, 0.1, 0.2):
        e = e0 + rms * move
        mine, exact = log_norm(e, e0, 1.0, "noise", sd), chi(e) - chi(e0)
        assert torch.allclose(mine, exact, rtol=0.1, atol=0.1)
        assert torch.allclose(mine.mean(), exact.mean(), rtol=0.05)
    assert torch.equal(log_norm(e0, e0, 1.0, "noise", sd), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("of", ["start", "table", "noise"])
def test_every_prior_holds_back_a_reward_that_only_wants_length(of):
    def longer(img, cond):
        return img[:, 0].norm(dim=-1).sum(1)

    def stretch(weight):
        found = run(
            TTEO(starts=1, iterations=40, optimizer="sgd", lr=0.02, unit=1.0, noise=0.5, norm_prior=weight, norm_of=of),
            longer,
        )
        return float((found.path[-1].norm(dim=-1) / found.path[0].norm(dim=-1)).mean())

    assert stretch(10.0) < stretch(1.0) < stretch(0.0)


def test_the_noise_is_the_recipes():
    net = CountingTeacher()
    rms = float(net.table_rms().detach())
    built = TTEO(norm_of="noise").build(context(teacher=net, init=Init(sigma=0.2)))
    assert built.noise == pytest.approx(0.2 * rms)
    built = TTEO(norm_of="noise").build(context(teacher=net, init=Init(sigma=0.2, noise_rms="unit")))
    assert built.noise == pytest.approx(0.2)
    silent = TTEO(norm_of="noise", norm_prior=1.0).build(context(teacher=net, init=Init(sigma=0)))
    with pytest.raises(PluginError, match="no embedding noise"):
        run(silent)


# Patience


def test_patience_stops_what_does_not_rise_and_keeps_what_it_has_found():
    wild = TTEO(starts=3, iterations=9, optimizer="sgd", lr=50.0, unit=1.0, patience=2)
    found, whole = run(wild), run(wild.model_copy(update={"patience": None}))
    assert torch.equal(found.points, torch.full((3, 6), 3)), "the start and two steps down"
    assert torch.equal(found.spent, torch.full((6,), 3 * 3 * 3.0))
    assert found.passes == 27
    assert whole.passes == 3 * (1 + 3 * 9) == wild.passes()
    assert torch.equal(found.score, whole.score)
    assert found.trace.shape == whole.trace.shape
    assert torch.equal(found.trace[:, :3], whole.trace[:, :3])
    assert torch.equal(found.trace[:, 3:], found.trace[:, 2:3].expand(3, 7, 6)), "it stays where it stopped"
    assert torch.equal(found.path[3:], found.path[2:3].expand(7, -1, -1, -1))


def test_patience_is_each_starts_own():
    """One that has arrived stops; others go on as they would without it."""

    def score(img, cond):
        return torch.where(cond.labels == 0, quadratic(img, cond).clamp(max=-1e4), quadratic(img, cond))

    climb = TTEO(starts=2, iterations=6, optimizer="sgd", lr=0.05, unit=1.0)
    found, whole = run(climb.model_copy(update={"patience": 1}), score), run(climb, score)
    at = labels(6).labels != 0
    assert torch.equal(found.points[:, ~at], torch.full((2, 2), 2))
    assert torch.equal(found.points[:, at], torch.full((2, 4), 7))
    assert torch.equal(found.trace[:, :, at], whole.trace[:, :, at])
    assert torch.equal(found.spent, torch.where(at, 2 * 19.0, 2 * 6.0))
    assert found.passes == pytest.approx(float(found.spent.mean()))


def test_patience_is_priced_as_it_is():
    """Counted by hooks: a start that stops after k points cost k forwards and k backwards."""
    net, back = CountingTeacher(), []

    def images(e, cond):
        z = net(e, cond).logits
        if e.requires_grad:
            e.register_hook(lambda g: back.append(len(g)))
        return z.flatten(2)[:, None]

    found = TTEO(starts=2, iterations=7, lr=3.0, unit=1.0, patience=1, candidates=3).run(
        images, lambda img, cond: img.mean((1, 2, 3)), lambda cond, r: torch.randn(len(cond), 6, 8, generator=r),
        labels(5), rng(),
    )  # fmt: skip
    assert (found.points < 8).any()
    assert float(found.spent.sum()) == net.rows + 2 * sum(back)
    assert found.passes == pytest.approx((net.rows + 2 * sum(back)) / 5)


# How many at once


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize("method", [
    TTEO(starts=3, iterations=3, lr=0.3, unit=1.0), BestOfN(n=7),
    TTEO(starts=2, iterations=2, candidates=5, optimizer="normalized", patience=1, lr=0.3, unit=1.0),
])  # fmt: skip
def test_results_do_not_depend_on_how_many_go_through_at_once(method, rows):
    sizes = []

    def counted(e, cond):
        sizes.append(len(e))
        return generator(e, cond)

    whole, few = run(method), run(method.model_copy(update={"rows": rows}), generator=counted)
    assert max(sizes) <= rows
    for name in ("e", "score", "trace", "points", "spent"):
        a, b = getattr(whole, name), getattr(few, name)
        assert (a is None and b is None) or torch.equal(a, b), name
    assert whole.passes == few.passes


def test_only_one_chunk_has_a_graph():
    alive, most = [], []

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx, e):
            alive.append(len(e))
            most.append(sum(alive))
            ctx.n = len(e)
            return e.clone()

        @staticmethod
        def backward(ctx, g):
            alive.remove(ctx.n)
            return g

    def images(e, cond):
        return (Held.apply(e) if e.requires_grad else e)[:, None]

    found = run(TTEO(starts=4, iterations=2, unit=1.0, rows=5), generator=images)
    assert max(most) == 5
    assert found.trace.shape == (4, 3, 6)


def test_the_sections_rows_are_the_methods_unless_it_has_its_own():
    here = context(teacher=CountingTeacher(), rows=3)
    assert (TTEO().build(here).rows, BestOfN().build(here).rows) == (3, 3)
    assert (TTEO(rows=7).build(here).rows, BestOfN(rows=7).build(here).rows) == (7, 7)
    assert TTEO().build(context(teacher=CountingTeacher())).rows is None


def test_best_of_fills_a_chunk_with_several_starts():
    sizes = []

    def counted(e, cond):
        sizes.append(len(e))
        return generator(e, cond)

    best_of(10, counted, quadratic, start, labels(3), rng(), rows=12)
    assert sizes == [12, 12, 6]


# Rewards by name


@pytest.mark.parametrize("method", [TTEO(starts=2, iterations=3, unit=1.0, patience=1, rows=5), BestOfN(n=3)])
def test_each_reward_has_a_trace_of_its_own(method):
    found = run(method, Several())
    assert set(found.rewards) == {"near", "bright"}
    assert all(trace.shape == found.trace.shape for trace in found.rewards.values())
    assert torch.allclose(found.rewards["near"] + found.rewards["bright"], found.trace)
    assert run(method).rewards == {}


def test_a_score_without_names_has_none():
    img, cond = torch.rand(2, 1, 4, 3), Cond(torch.zeros(2, dtype=torch.int64))
    value, rewards = named(quadratic, img, cond)
    assert torch.equal(value, quadratic(img, cond))
    assert rewards == {}


def test_gradients_are_each_samples_own():
    e = start(labels(5), rng())
    points = evaluate(generator, quadratic, e, labels(5), rows=2, gradient=True)
    assert torch.allclose(points.gradient, 2 * (TARGETS[labels(5).labels].view(-1, 1, 1) - e))
    assert evaluate(generator, quadratic, e, labels(5)).gradient is None
