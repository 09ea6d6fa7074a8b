"""Guards against pleasing the reward instead of the eye: random views, and an end when held-out rewards part."""

from __future__ import annotations

import json
import random

import pytest
import torch

from softdimo.errors import PluginError
from softdimo.kinds import ImageShape
from softdimo.testing import check_loss
from softdimo.testing import context as here
from softdimo_plugins.features.cnn import CNN
from softdimo_plugins.losses.augment import Augment, crop
from softdimo_plugins.losses.parting import Parting, Watch
from softdimo_plugins.losses.reward import RewardLoss, RewardTerm, Weighted
from softdimo_plugins.rewards.class_log_prob import ClassLogProb, ClassLogProbReward
from softdimo_plugins.rewards.connected import Connected
from tests.helpers import Pooled
from tests.plugins.terms import agree, context, gradient, roll

NAMED = Weighted(reward=Connected(use="r"))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(n=3, height=6, width=8, channels=2):
    """Images whose values say where they are: image, channel, row, column."""
    grid = torch.arange(n * channels * height * width, dtype=torch.float64)
    return grid.view(n, channels, height, width) / grid.numel()


# views


def test_nothing_is_drawn_where_all_is_off():
    img, generator = numbered(), rng()
    state = generator.get_state()
    assert Augment().view(img, generator) is img
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("part", [0.5, 0.9, 1.0])
def test_a_crop_is_a_window_of_each_image(part):
    img = numbered()
    high, wide = round(part * 6), round(part * 8)
    out = crop(img, part, torch.tensor([0.0, 0.5, 0.999]), torch.tensor([0.999, 0.0, 0.4]))
    assert out.shape == (3, 2, high, wide)
    tops = [0, int(0.5 * (7 - high)), 6 - high]
    lefts = [8 - wide, 0, int(0.4 * (9 - wide))]
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        assert torch.equal(out[i], img[i, :, top : top + high, left : left + wide])


def test_crops_lie_everywhere_and_their_sizes_fill_the_range():
    augment, generator, img = Augment(crop=0.5), rng(), numbered(2, 20, 20, 1)
    sizes, corners = set(), [set(), set()]
    for _ in range(400):
        view = augment.view(img, generator)
        sizes.add(view.shape[2:])
        for i in range(2):
            place = round(float(view[i, 0, 0, 0] - img[i, 0, 0, 0]) * img.numel())
            corners[i].add(divmod(place, 20))
    assert {h for h, _ in sizes} == set(range(10, 21))
    assert all(h == w for h, w in sizes)
    for found in corners:
        assert {top for top, _ in found} == set(range(11))
    assert corners[0] != corners[1]


def test_mirrors_and_noise_have_their_odds():
    generator, img = rng(), numbered(500)
    view = Augment(flip=0.3).view(img, generator)
    flipped = (view == img.flip(-1)).flatten(1).all(1)
    assert ((view == img).flatten(1).all(1) ^ flipped).all()
    assert 0.23 < flipped.double().mean() < 0.37
    gray = torch.full((4, 1, 50, 50), 0.5)
    noise = Augment(noise=0.1).view(gray, generator) - gray
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    assert (noise[0] - noise[1]).abs().max() > 0.1
    wild = Augment(noise=5.0).view(gray, generator)
    assert (wild.min(), wild.max()) == (0, 1)


def test_views_come_from_the_rolls_generator_alone():
    augment, img = Augment(crop=0.6, flip=0.5, noise=0.1), numbered().float()
    before = torch.random.get_rng_state()
    one, again, other = (augment.view(img, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert one.shape != other.shape or not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def judge(seed):
    """A small differentiable reward on images of three channels, of any size."""
    net = Pooled(seed, image=ImageShape(3, 2, 3)).double().requires_grad_(False)
    whole = net.forward
    net.forward = lambda img: whole(torch.nn.functional.adaptive_avg_pool2d(img, (2, 3)))
    return ClassLogProbReward(net)


def term(augment=None, parting=None, held_out=(), weight=0.7, cap=None):
    entry = Weighted(reward=Connected(use="a"), weight=weight, name="one", cap=cap)
    return RewardTerm([(entry, judge(1))], list(held_out), augment, parting)


def test_the_gradient_through_views_against_finite_differences():
    ctx = context()
    seen = roll(ctx)
    augment = Augment(crop=0.5, flip=0.5, views=3)

    def loss(z):
        fresh = roll(ctx)  # the same draws each time
        fresh.logits = z
        return term(augment).generator(fresh)[0]

    g = agree(loss, seen.logits.detach())
    fresh = roll(ctx)
    assert (g - gradient(term().generator(fresh)[0], fresh)).abs().max() > 1e-4


def test_a_reward_is_the_mean_over_its_views_and_the_cap_is_on_that_mean():
    ctx, augment = context(), Augment(crop=0.5, flip=0.5, views=4)
    seen, reward = roll(ctx), judge(1)
    drawn = rng()
    drawn.set_state(seen.rng.get_state())
    views = [augment.view(seen.images, drawn).expand(-1, 3, -1, -1) for _ in range(4)]
    mean = torch.stack([reward(view, seen.cond) for view in views]).mean(0).detach()
    cap = float(mean.sort().values[1:3].mean())
    loss, logs = term(augment, cap=cap).generator(seen)
    assert float(logs["one"]) == pytest.approx(float(mean.mean()))
    assert loss.item() == pytest.approx(-0.7 * float(mean.clamp(max=cap).mean()))
    g = gradient(loss, seen).abs().sum((1, 2, 3))
    assert (g > 0).tolist() == (mean < cap).tolist()


def test_held_out_rewards_see_the_images():
    ctx = context()
    reward = judge(2)
    watched = [(Weighted(reward=Connected(use="b")), reward)]
    logs = term(Augment(crop=0.5, noise=0.3), held_out=watched).generator(seen := roll(ctx))[1]
    assert float(logs["held_out/b"]) == pytest.approx(
        float(reward(seen.images.expand(-1, 3, -1, -1), seen.cond).detach().mean())
    )


def test_the_objective_shows_the_views():
    spec = RewardLoss(rewards=(NAMED,), augment=Augment(crop=0.8))
    assert spec.objective()[0] == "-sum_i lambda_i E[R_i(A(Dec(E_dec^T p_theta)), c)]"
    assert RewardLoss(rewards=(NAMED,)).objective()[0] == RewardLoss.equation


def test_the_guarded_term_keeps_the_contract_of_losses():
    ctx = here()
    classifier = Weighted(reward=ClassLogProb(classifier=CNN(use="cnn", width=4, features=4)), name="c")
    spec = RewardLoss(
        use="reward", rewards=(classifier,), held_out=(classifier,),
        augment=Augment(crop=0.5, flip=0.5, noise=0.05, views=2), stop_when_parted=Parting(window=8),
    )  # fmt: skip
    check_loss(spec.build(ctx), ctx)


# parting


def run(watch, optimized, held_out, turns, noise=1.0, seed=0):
    """Feed trends with noise; returns the turn of the end, or None."""
    draw = random.Random(seed)
    for i in range(turns):
        watch.add(optimized(i) + draw.gauss(0, noise), {k: f(i) + draw.gauss(0, noise) for k, f in held_out.items()})
        if watch.ending:
            return i + 1
    return None


FLAT, UP, DOWN = (lambda i: 0.0), (lambda i: 0.01 * i), (lambda i: -0.01 * i)


@pytest.mark.parametrize(
    ("optimized", "held_out", "ends"),
    [
        (UP, DOWN, True),
        (UP, UP, False),
        (DOWN, DOWN, False),
        (UP, FLAT, False),
        (FLAT, FLAT, False),
        (FLAT, DOWN, False),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_only_rising_against_falling_ends(optimized, held_out, ends, seed):
    at = run(Watch(Parting(window=50)), optimized, {"h": held_out}, 5000, seed=seed)
    assert (at is not None) == ends
    if ends:
        assert at % 50 == 0
        assert at <= 500


def test_the_best_window_counts_not_the_first():
    """The held-out reward rises with the optimized one for a while, then falls, but never below where it began."""
    at = run(Watch(Parting(window=50)), UP, {"h": lambda i: 0.02 * i if i < 1000 else 20 - 0.01 * (i - 1000)}, 2000)
    assert at is not None
    assert 1000 < at < 1500


def test_slow_parting_is_found_however_slow():
    slow = Watch(Parting(window=50))
    assert run(slow, lambda i: 5e-4 * i, {"h": lambda i: -5e-4 * i}, 1000) is None
    assert run(slow, lambda i: 5e-4 * (i + 1000), {"h": lambda i: -5e-4 * (i + 1000)}, 9000, seed=1) is not None


def test_more_sigmas_wait_longer():
    ends = [run(Watch(Parting(window=50, sigmas=s)), UP, {"h": DOWN}, 5000) for s in (3, 10, 30)]
    assert ends == sorted(ends)
    assert ends[0] < ends[2]


def test_rewards_that_do_not_vary_are_compared_too():
    assert run(Watch(Parting(window=8)), UP, {"h": DOWN}, 100, noise=0) == 16
    assert run(Watch(Parting(window=8)), FLAT, {"h": FLAT}, 100, noise=0) is None


def test_the_reason_names_the_reward_that_fell():
    watch = Watch(Parting(window=20))
    run(watch, UP, {"fine": UP, "other": DOWN}, 2000)
    assert "the held-out reward `other` fell from " in watch.ending
    assert "(means over 20 turns)" in watch.ending


def test_a_watch_goes_on_where_it_was_saved():
    def feed(watch, turns, at=0):
        draw = random.Random(0)
        for i in range(at + turns):
            values = UP(i) + draw.gauss(0, 1), {"h": DOWN(i) + draw.gauss(0, 1)}
            if i >= at and not watch.ending:
                watch.add(*values)

    whole = Watch(Parting(window=50))
    feed(whole, 600)
    part = Watch(Parting(window=50))
    feed(part, 130)
    again = Watch(Parting(window=50))
    again.load_state_dict(json.loads(json.dumps(part.state_dict())))
    feed(again, 470, at=130)
    assert again.state_dict() == whole.state_dict()
    assert whole.ending


def test_the_term_watches_what_it_maximizes():
    ctx = context()
    watched = [(Weighted(reward=Connected(use="b")), judge(2))]
    guarded = term(parting=Parting(window=8), held_out=watched, weight=-2.0)
    loss, logs = guarded.generator(roll(ctx))
    turns = guarded.seen()["turns"]
    assert turns[""] == [pytest.approx(-loss.item())]
    assert turns["b"] == [pytest.approx(float(logs["held_out/b"]))]
    assert guarded.ending == ""
    fresh = term(parting=Parting(window=8), held_out=watched)
    fresh.see(guarded.seen())
    assert fresh.seen() == guarded.seen()
    assert (term().seen(), term().ending) == ({}, "")


def test_without_held_out_rewards_nothing_can_part():
    with pytest.raises(
        PluginError, match="stop_when_parted: compares with held-out rewards: add entries to `held_out`"
    ):
        RewardLoss(use="reward", rewards=(Weighted(reward=classifier()),), stop_when_parted=Parting()).build(here())


def test_two_rewards_need_two_names():
    for settings in (
        {"rewards": (named("c"), named("c"))},
        {"rewards": (named(""),), "held_out": (named(""), named(""))},
    ):
        with pytest.raises(PluginError, match=r"two rewards are called `c.*`.* give one a `name:`"):
            RewardLoss(use="reward", **settings).build(here())
    RewardLoss(use="reward", rewards=(named("c"), named("d")), held_out=(named("c"),)).build(here())


def named(name):
    reward = ClassLogProb(use="class_log_prob", classifier=CNN(use="cnn", width=4, features=4))
    return Weighted(reward=reward, name=name)


def classifier():
    return ClassLogProb(classifier=CNN(use="cnn", width=4, features=4))


def test_unknown_sizes_are_refused():
    for settings in ({"crop": 0.0}, {"crop": 1.1}, {"flip": 2}, {"noise": -1}, {"views": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            Augment(**settings)
