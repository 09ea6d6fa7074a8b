"""The shape annotations of the public functions hold at run time, and reject wrong shapes."""

import beartype
import pytest
import torch
from jaxtyping import TypeCheckError, jaxtyped

from softdimo import kinds
from softdimo.math import divergence, guidance, init, masking, schedules
from softdimo.math.divergence import Divergence
from softdimo.math.guidance import Guidance
from softdimo.math.init import Init
from softdimo.math.soft import Relaxation

SHAPE = kinds.TokenShape(2, 3, 2, 5)


@pytest.fixture(autouse=True)
def _names(monkeypatch):
    """Give the modules the names that they import for type checkers only."""
    for module, name in ((masking, "TokenShape"), (init, "TokenShape"), (guidance, "Cond"), (guidance, "Teacher")):
        monkeypatch.setattr(module, name, getattr(kinds, name), raising=False)


def checked(function):
    """`function` with every annotation checked at run time."""
    return jaxtyped(function, typechecker=beartype.beartype)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_schedules(rng):
    u = torch.rand(3, 4)
    for name in ("arccos", "uniform"):
        checked(schedules.progress_at)(name, checked(schedules.mask_ratio)(name, u))
        checked(schedules.sample_ratio)(name, 4, rng, "cpu")
        checked(schedules.reveal_counts)(name, 3, 6)
        checked(schedules.masked_counts)(name, 3, 6)


def test_masking_and_init(rng):
    tokens = checked(Init.tokens)(Init(), 3, SHAPE, rng, "cpu")
    mask = checked(masking.exact_count_mask)(torch.rand(3), SHAPE, rng)
    checked(masking.apply_mask)(tokens, mask, 5)
    for rms in (0.5, torch.tensor(0.5)):
        checked(Init.perturb)(Init(), torch.zeros(3, 6, 8), rms, rng)


def test_divergence():
    p, q, student = torch.randn(3, 7, 5)
    for name in ("fkl", "rkl", "jeffreys", "js", "hellinger", "tv"):
        checked(Divergence.value)(Divergence(name=name), p, q)
        checked(Divergence.gradient)(Divergence(name=name), p, q)
    g = checked(divergence.softmax_gradient)(student, p, q)
    checked(divergence.f_divergence_value)(torch.square, p, q)
    checked(divergence.f_divergence_gradient)(torch.square, lambda u: 2 * u, p, q)
    checked(divergence.surrogate)(student, g, 2)
    checked(divergence.surrogate)(student, g, 2, "mean_masked", torch.tensor([3, 4]))


def test_soft(rng):
    logits, tokens = torch.randn(2, 6, 2, 5), torch.zeros(2, 6, 2, dtype=torch.int64)
    for kind in ("soft", "straight_through", "gumbel", "gumbel_straight_through"):
        checked(Relaxation.__call__)(Relaxation(kind=kind), logits, tokens, rng)


class Net(kinds.Teacher):
    """A teacher whose logits are a slice of its embedding."""

    shape, width, depth = SHAPE, 10, 1

    def embed(self, tokens):
        return torch.zeros(len(tokens), 6, 10)

    def soften(self, probs, mask=None):
        return torch.zeros(len(probs), 6, 10)

    def forward(self, e, cond, at=None, features=()):
        logits = e.view(-1, 6, 2, 5) + cond.labels.view(-1, 1, 1, 1)
        return kinds.Output(logits if at is None else logits[at])

    def table_rms(self):
        return torch.tensor(1.0)


def test_guidance(rng):
    e, cond = torch.randn(3, 6, 10, generator=rng), kinds.Cond(torch.arange(3))
    at = torch.rand(3, 6, 2, generator=rng) < 0.5
    for scale in (1.0, 2.0, torch.rand(3)):
        for units in (None, at):
            checked(guidance.guided_logits)(Net(), e, cond, scale, units)
    for progress in (0.5, torch.rand(3)):
        checked(Guidance.at)(Guidance(ramp="cosine"), progress)
    checked(guidance.from_scale)(checked(guidance.to_scale)(2.0, "maskbit"), "maskbit")


def test_wrong_shapes_are_rejected(rng):
    with pytest.raises(TypeCheckError):
        checked(divergence.surrogate)(torch.zeros(3, 4), torch.zeros(3, 5), 1)
    with pytest.raises(TypeCheckError):
        checked(Divergence.value)(Divergence(), torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    with pytest.raises(TypeCheckError):
        checked(masking.apply_mask)(torch.zeros(2, 6, 2, dtype=torch.int64), torch.zeros(2, 6, 1, dtype=torch.bool), 5)
