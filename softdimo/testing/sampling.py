"""Contracts of what draws: samplers, and searches at test time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softdimo.errors import PluginError
from softdimo.kinds import Cond, Context, Found, Output, Sampler, Search, Teacher
from softdimo.math.rollout import start
from softdimo.search.scoring import decoder
from softdimo.testing.claims import labels, left_alone, near, need, no_global_randomness, rng

MANY = 2000
"""Sequences in the hunt for mask ids."""


def check_sampler(sampler: Sampler, made_in: Context) -> None:
    """Classes only (never the mask id), one sequence per condition, randomness from the given generator alone.

    The mask id is hunted for in many sequences, and where all classes are equally probable and where one is certain.
    `passes()` must not be less than the passes that the network makes for different conditions.
    """
    net, classes = made_in.teacher, len(made_in.classes)
    assert net is not None, "give the context that it was built in"
    cond, shape = labels(5, classes), net.shape
    with left_alone("a sampler", network=net), no_global_randomness("a sampler"):
        ids = sampler.sample(net, cond, rng(3))
    need(ids.shape == (5, shape.L, shape.G), f"a sampler gives [B L G], not {list(ids.shape)}")
    need(torch.equal(ids, sampler.sample(net, cond, rng(3))), "the same generator must give the same tokens")
    need(not torch.equal(ids, sampler.sample(net, cond, rng(4))), "another seed must give other tokens")
    for about, which, n in (
        ("", net, MANY),
        (" where all classes are equally probable", _Scaled(net, 0.0), MANY // 10),
        (" where one class is certain", _Scaled(net, 1e4), MANY // 10),
    ):
        ids = sampler.sample(which, labels(n, classes), rng(5))
        need(not ids.is_floating_point() and ids.min() >= 0, f"tokens are whole numbers from 0{about}")
        masks = int((ids >= shape.V).sum())
        need(not masks, f"a sampler must never emit the mask id V{about}: {masks} of {ids.numel()} tokens")
    need(sampler.passes() > 0, "passes() is the number of network passes per sample")
    with _counted(net) as count:
        sampler.sample(net, labels(classes, classes), rng(6))
    made = count.forward / classes
    need(made <= sampler.passes() + 1e-6, f"passes() says {sampler.passes():g} per sample, the network made {made:g}")


class _Scaled(Teacher):
    """The same network, its logits times `by`."""

    def __init__(self, net: Teacher, by: float) -> None:
        super().__init__()
        self.net, self.by, self.shape, self.width, self.depth = net, by, net.shape, net.width, net.depth
        self.train(net.training)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.net.embed(tokens)

    def soften(self, probs: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.net.soften(probs, mask)

    def forward(self, e: Tensor, cond: Cond, at: Tensor | None = None, features: Sequence[int] = ()) -> Output:
        out = self.net(e, cond, at, features)
        return Output(out.logits * self.by, out.features)

    def table_rms(self) -> Tensor:
        return self.net.table_rms()

    def null(self, cond: Cond) -> Cond:
        return self.net.null(cond)


@dataclass
class _Count:
    """Rows that a network saw, and rows that a gradient came back to."""

    forward: int = 0
    backward: int = 0


@contextlib.contextmanager
def _counted(net: Teacher) -> Iterator[_Count]:
    """Count the rows of a network's passes, however they are called."""
    count, plain = _Count(), net.forward

    def forward(e: Tensor, cond: Cond, at: Tensor | None = None, features: Sequence[int] = ()) -> Output:
        count.forward += len(e)
        if torch.is_grad_enabled() and e.requires_grad:
            e = e.clone()
            e.register_hook(back)  # type: ignore[no-untyped-call]
        return plain(e, cond, at, features)

    def back(gradient: Tensor) -> None:
        count.backward += len(gradient)

    net.forward = forward  # type: ignore[method-assign]
    try:
        yield count
    finally:
        del net.forward


def check_search(search: Search, made_in: Context) -> None:
    """Never worse than its first start, honest about score and cost, each condition by itself, weights frozen.

    `passes` is compared with the passes that the network makes: a row forward is 1, a row that a gradient comes back to
    is 2. A search that needs a gradient raises PluginError for a reward without one.
    """
    need(search.decode in ("argmax", "soft"), "`decode` is `argmax` or `soft`")
    trial = _Trial(search, made_in)
    with (
        left_alone("a search", network=trial.net, tokenizer=made_in.tokenizer),
        no_global_randomness("a search"),
        _counted(trial.net) as count,
    ):
        found = trial.run(trial.score)
    _found(trial, found)
    made = (count.forward + 2 * count.backward) / len(trial.cond)
    need(
        abs(found.passes - made) < 1e-6 * made,
        f"`passes` says {found.passes:g} forward-equivalents per condition, the network made {made:g}: "
        f"{count.forward} rows forward, and {count.backward} back at 2, for {len(trial.cond)} conditions",
    )
    again = trial.run(trial.score)
    same = torch.equal(found.e, again.e) and torch.equal(found.trace, again.trace)
    need(same, "the same generator must give the same result")
    need(not torch.equal(found.e, trial.run(trial.score, seed=1).e), "another seed must give another result")
    near(
        trial.run(lambda img, c: trial.score(img, c) * torch.where(c.labels == 0, 1.0, 100.0)).e[:1],
        found.e[:1],
        "each condition is searched by itself: its result must not depend on the scores of the others",
    )
    rewards = trial.run(_Named(trial.score)).rewards
    if rewards:
        need(set(rewards) == {"half", "rest"}, f"`rewards` are those that the score names, not {sorted(rewards)}")
        near(rewards["half"] + rewards["rest"], found.trace, "`rewards` must be those of the points of `trace`")
    try:
        trial.run(_Plain(trial.score))
    except PluginError as error:
        need("differentiable" in str(error), "a refused reward without a gradient must hear that it is why")


class _Trial:
    """One search on the tiny student: the score is how close an image comes to a target of its condition."""

    def __init__(self, search: Search, made_in: Context) -> None:
        assert made_in.teacher is not None, "give the context that it was built in"
        assert made_in.tokenizer is not None, "give the context that it was built in"
        assert made_in.init is not None, "give the context that it was built in"
        self.search, self.net, self.init = search, made_in.teacher, made_in.init
        self.cond = labels(len(made_in.classes), len(made_in.classes))
        self.generator = decoder(self.net, made_in.tokenizer, search.decode)
        self.targets = torch.rand(len(made_in.classes), *made_in.image, generator=rng(6))
        self.first: Tensor | None = None

    def score(self, img: Tensor, cond: Cond) -> Tensor:
        return -(img - self.targets[cond.labels]).square().mean((1, 2, 3))

    def start(self, cond: Cond, generator: torch.Generator) -> Tensor:
        e = start(self.net, cond, self.init, generator)[1]
        self.first = e.detach().clone() if self.first is None else self.first
        return e

    def run(self, score: Callable[[Tensor, Cond], Tensor], seed: int = 0) -> Found:
        self.first = None
        return self.search.run(self.generator, score, self.start, self.cond, rng(seed))


class _Plain:
    """A score without a gradient."""

    differentiable = False

    def __init__(self, score: Callable[[Tensor, Cond], Tensor]) -> None:
        self.score = score

    def __call__(self, img: Tensor, cond: Cond) -> Tensor:
        return self.score(img.detach(), cond)


class _Named:
    """A score that tells what it is made of."""

    differentiable = True

    def __init__(self, score: Callable[[Tensor, Cond], Tensor]) -> None:
        self.score = score

    def __call__(self, img: Tensor, cond: Cond) -> Tensor:
        return self.score(img, cond)

    def each(self, img: Tensor, cond: Cond) -> tuple[Tensor, dict[str, Tensor]]:
        value = self.score(img, cond)
        return value, {"half": value / 2, "rest": value / 2}


@torch.no_grad()
def _found(trial: _Trial, found: Found) -> None:
    """Shapes, and scores that are those of the embeddings."""
    B, trace, first = len(trial.cond), found.trace, trial.first
    need(first is not None, "a search begins at `start(cond, rng)`, the student's own random input")
    assert first is not None
    need(found.e.shape == first.shape, f"`e` is [B L D] = {list(first.shape)}, not {list(found.e.shape)}")
    need(found.score.shape == (B,), f"`score` is [B], not {list(found.score.shape)}")
    need(trace.ndim == 3 and trace.shape[2] == B, f"`trace` is [starts iterations B], not {list(trace.shape)}")
    kept = (found.e, found.score, trace, *(() if found.path is None else (found.path,)))
    need(not any(t.requires_grad for t in kept), "what was found carries no graph: detach it")
    need(all(t.isfinite().all() for t in kept), "what was found is finite")
    near(trial.score(trial.generator(found.e, trial.cond), trial.cond), found.score, "`score` must be that of `e`")
    near(trace.flatten(0, 1).max(0).values, found.score, "`score` must be the best of `trace`")
    worse = float((trial.score(trial.generator(first, trial.cond), trial.cond) - found.score).max())
    need(worse < 1e-5, f"a search is never worse than its first start, but this one is by {worse:.3g}")
    need(0 <= found.screening <= found.passes, "`screening` is a part of `passes`")
    if found.spent is not None:
        need(found.spent.shape == (B,), f"`spent` is [B], not {list(found.spent.shape)}")
        near(found.spent.double().mean(), torch.tensor(found.passes).double(), "`passes` must be the mean of `spent`")
    if found.points is not None:
        shape = (len(trace), B)
        need(found.points.shape == shape, f"`points` is [starts B] = {list(shape)}, not {list(found.points.shape)}")
        need(bool((found.points <= trace.shape[1]).all()), "`points` counts points of `trace`")
    if found.path is not None:
        shape = (trace.shape[1], *first.shape)
        need(found.path.shape == shape, f"`path` is [iterations B L D] = {list(shape)}, not {list(found.path.shape)}")
        passed = torch.stack([trial.score(trial.generator(e, trial.cond), trial.cond) for e in found.path])
        need((passed <= found.score + 1e-5).all(), "no point of `path` is better than `e`")
