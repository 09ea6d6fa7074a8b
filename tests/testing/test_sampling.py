"""The contract checks of samplers and searches accept what keeps the contract and name what breaks it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from softdimo import testing
from softdimo.errors import PluginError
from softdimo.kinds import Found
from softdimo.testing import context
from softdimo_plugins.search.best_of_n import BestOfN
from softdimo_plugins.search.tteo import TTEO
from tests.helpers import refused, variant


@pytest.fixture
def here():
    return context()


class Uniform:
    def passes(self):
        return 1.0

    def sample(self, net, cond, rng):
        s = net.shape
        return torch.randint(s.V, (len(cond), s.L, s.G), generator=rng)


def sampler(fn, **members):
    return variant(
        Uniform, sample=lambda self, net, cond, rng: fn(Uniform.sample(self, net, cond, rng), net, rng), **members
    )()


def test_samplers(here):
    testing.check_sampler(Uniform(), here)
    with refused("not draw from a global"):
        testing.check_sampler(sampler(lambda t, net, rng: torch.randint_like(t, 5)), here)
    with refused("same generator"):
        own = torch.Generator().manual_seed(0)
        testing.check_sampler(sampler(lambda t, net, rng: torch.randint(5, t.shape, generator=own)), here)
    with refused("another seed"):
        testing.check_sampler(sampler(lambda t, net, rng: t * 0), here)
    with refused(r"\[B L G\]"):
        testing.check_sampler(sampler(lambda t, net, rng: t[..., 0]), here)
    with refused("number of network passes"):
        testing.check_sampler(sampler(lambda t, net, rng: t, passes=lambda self: 0.0), here)
    with refused("leave the network in its mode"):
        testing.check_sampler(sampler(lambda t, net, rng: (net.train(), t)[1]), here)


def test_samplers_that_are_dearer_than_they_say(here):
    def two(self, net, cond, rng):
        ids = Uniform.sample(self, net, cond, rng)
        for _ in range(2):
            net(net.embed(ids), cond)
        return ids

    with refused("says 1 per sample, the network made 2"):
        testing.check_sampler(variant(Uniform, sample=two)(), here)
    testing.check_sampler(variant(Uniform, sample=two, passes=lambda self: 2.0)(), here)


class Threshold(Uniform):
    """Draws, keeps what is at least as probable as the median, and once more what was left: ties stay masked."""

    def sample(self, net, cond, rng):
        ids = torch.full((len(cond), net.shape.L, net.shape.G), net.shape.V)
        p, drawn = (net(net.embed(ids), cond).logits + self.noise(ids.shape, rng)).softmax(-1).max(-1)
        return torch.where(p > p.flatten(1).min(1).values[:, None, None] - self.slack, drawn, ids)

    def noise(self, shape, rng):
        return -torch.empty(*shape, 5).exponential_(generator=rng).log()

    slack = 1e-6


def test_samplers_that_emit_the_mask(here):
    with refused("never emit the mask id V: "):
        testing.check_sampler(sampler(lambda t, net, rng: torch.where(t == 0, net.shape.V, t)), here)

    def seldom(t, net, rng):
        return torch.where(torch.rand(t.shape, generator=rng) < 1e-3, net.shape.V, t)

    with refused("never emit the mask id V: "):
        testing.check_sampler(sampler(seldom), here)
    testing.check_sampler(Threshold(), here)
    with refused("never emit the mask id V: 2"):
        testing.check_sampler(variant(Threshold, slack=0.0)(), here)

    def certain(self, net, cond, rng):
        ids = torch.full((len(cond), net.shape.L, net.shape.G), net.shape.V)
        logits = net(net.embed(ids), cond).logits
        noise = self.noise(ids.shape, rng)
        return torch.where(logits.softmax(-1).max(-1).values < 1, (logits + noise).argmax(-1), ids)

    with refused("where one class is certain: "):
        testing.check_sampler(variant(Threshold, sample=certain)(), here)

    def tied(self, net, cond, rng):
        ids = torch.full((len(cond), net.shape.L, net.shape.G), net.shape.V)
        logits = net(net.embed(ids), cond).logits
        some = logits.max(-1).values > logits.min(-1).values
        return torch.where(some, (logits + self.noise(ids.shape, rng)).argmax(-1), ids)

    with refused("where all classes are equally probable: "):
        testing.check_sampler(variant(Threshold, sample=tied)(), here)


class Climb:
    """Gradient ascent from one start, the best point kept: what a search should be."""

    decode = "soft"
    steps = 3

    def run(self, generator, score, start, cond, rng):
        if not getattr(score, "differentiable", True):
            raise PluginError("this reward is not differentiable")
        e, points, scores = start(cond, rng), [], []
        for step in range(self.steps + 1):
            e = e.detach().requires_grad_(step < self.steps)
            value = score(generator(e, cond), cond)
            points.append(e.detach())
            scores.append(value.detach())
            if step < self.steps:
                e = e + self.scaled(torch.autograd.grad(value.sum(), e)[0])
        trace, path = torch.stack(scores)[None], torch.stack(points)
        return self.found(trace, path, len(cond))

    def scaled(self, gradient):
        return 100 * gradient

    def found(self, trace, path, n):
        best, when = trace[0].max(0)
        return Found(path[when, torch.arange(n)], best, trace, self.passes(), path=path)

    def passes(self):
        return 1.0 + 3.0 * self.steps


def search(**members):
    return variant(Climb, **members)()


def last(self, trace, path, n):
    return Found(path[-1], trace[0, -1], trace, self.passes(), path=path)


def altered(**changes):
    """What is found, with some fields replaced by functions of it."""

    def found(self, trace, path, n):
        out = Climb.found(self, trace, path, n)
        return replace(out, **{name: change(out) for name, change in changes.items()})

    return found


def test_searches(here):
    testing.check_search(Climb(), here)
    testing.check_search(search(decode="argmax", steps=1), here)
    testing.check_search(TTEO(starts=2, candidates=5, lr=0.3).build(here), here)
    testing.check_search(TTEO(starts=3, lr=5.0, patience=1, rows=2).build(here), here)
    testing.check_search(BestOfN(n=3), here)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"decode": "hard"}, "`decode` is"),
        ({"found": last, "scaled": lambda s, g: -1e4 * g}, "must be the best of `trace`"),
        (
            {
                "found": lambda s, t, p, n: Found(p[-1], t[0, -1], t[:, -1:], s.passes()),
                "scaled": lambda s, g: -1e4 * g,
            },
            "never worse than its first start, but this one is by",
        ),
        ({"found": altered(score=lambda f: f.score + 0.1)}, "`score` must be that of `e`"),
        ({"found": altered(e=lambda f: f.path[0])}, "`score` must be that of `e`"),
        ({"found": altered(trace=lambda f: f.trace[0])}, r"`trace` is \[starts iterations B\], not \[4, 3\]"),
        ({"found": altered(trace=lambda f: f.trace.mT)}, r"`trace` is \[starts iterations B\], not \[1, 3, 4\]"),
        ({"found": altered(trace=lambda f: f.trace.flip(2))}, "`score` must be the best of `trace`"),
        ({"found": altered(path=lambda f: f.path[1:])}, r"`path` is \[iterations B L D\]"),
        ({"found": altered(path=lambda f: f.path.clone().requires_grad_())}, "carries no graph"),
        (
            {
                "found": altered(
                    path=lambda f: f.path * 0 + f.e,
                    e=lambda f: f.path[0],
                    score=lambda f: f.trace[0, 0],
                    trace=lambda f: f.trace[:, :1].expand(-1, 4, -1),
                )
            },
            "no point of `path` is better",
        ),
        ({"found": altered(screening=lambda f: 20.0)}, "`screening` is a part of `passes`"),
        ({"found": altered(spent=lambda f: f.score.new_full((3,), 9.0))}, "`passes` must be the mean of `spent`"),
        ({"found": altered(spent=lambda f: f.score.new_full((1, 3), 10.0))}, r"`spent` is \[B\], not \[1, 3\]"),
        ({"found": altered(points=lambda f: f.score.long())}, r"`points` is \[starts B\] = \[1, 3\], not \[3\]"),
        ({"found": altered(points=lambda f: f.trace[:, 0].long() * 0 + 5)}, "`points` counts points of `trace`"),
        ({"found": altered(rewards=lambda f: {"half": f.trace})}, "`rewards` are those that the score names"),
        ({"found": altered(rewards=lambda f: {"half": f.trace, "rest": f.trace})}, "must be those of the points"),
        ({"passes": lambda s: 1.0 + s.steps}, "says 4 forward-equivalents per condition, the network made 10: 12 rows"),
        ({"passes": lambda s: 4.0 * s.steps}, "says 12 forward-equivalents per condition, the network made 10"),
        ({"scaled": lambda s, g: 100 * g / g.norm()}, "each condition is searched by itself"),
        ({"scaled": lambda s, g: 100 * g + 0.1 * torch.randn(g.shape)}, "not draw from a global"),
    ],
)
def test_searches_that_break_the_contract(here, members, message):
    with refused(message):
        testing.check_search(search(**members), here)


def test_searches_that_touch_the_network(here):
    def trains(self, gradient):
        with torch.no_grad():
            here.teacher.head.bias.add_(0.01)
        return gradient

    with refused("must not change the weights or buffers of the network"):
        testing.check_search(search(scaled=trains), here)

    class Backward(Climb):
        def run(self, generator, score, start, cond, rng):
            here.teacher.requires_grad_(True)
            e = start(cond, rng).detach().requires_grad_()
            score(generator(e, cond), cond).sum().backward()
            return Climb.run(self, generator, score, start, cond, rng)

    here = context()
    with refused("must not reach the weights of the network"):
        testing.check_search(Backward(), here)


def test_searches_whose_randomness_is_their_own(here):
    class Own(BestOfN):
        def run(self, generator, score, start, cond, rng):
            return BestOfN.run(self, generator, score, start, cond, torch.Generator().manual_seed(0))

    with refused("another seed must give another result"):
        testing.check_search(Own(n=2), here)

    class Fresh(BestOfN):
        def run(self, generator, score, start, cond, rng):
            rng.seed()
            return BestOfN.run(self, generator, score, start, cond, rng)

    with refused("the same generator must give the same result"):
        testing.check_search(Fresh(n=2), here)


def test_searches_and_rewards_without_a_gradient(here):
    def mute(self, generator, score, start, cond, rng):
        if not getattr(score, "differentiable", True):
            raise PluginError("no")
        return Climb.run(self, generator, score, start, cond, rng)

    with refused("must hear that it is why"):
        testing.check_search(search(run=mute), here)
