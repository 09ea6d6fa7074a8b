"""The shape annotations of samplers, metrics and search hold at run time, and reject wrong shapes."""

import beartype
import pytest
import torch
from jaxtyping import TypeCheckError, jaxtyped

from softdimo.math.init import Init
from softdimo_plugins.metrics import frechet, inception_score, neighbors
from softdimo_plugins.metrics.extract import extract
from softdimo_plugins.samplers import truncate
from softdimo_plugins.samplers.maskgen import MaskGen
from softdimo_plugins.samplers.maskgit import MaskGIT, most_confident
from softdimo_plugins.samplers.one_step import OneStep
from softdimo_plugins.samplers.random_order import RandomOrder
from softdimo_plugins.search.best_of_n import BestOfN
from softdimo_plugins.search.tteo import TTEO
from tests.helpers import CountingTeacher, Pooled, labels, rng


def checked(function):
    """`function` with every annotation checked at run time."""
    return jaxtyped(function, typechecker=beartype.beartype)


@pytest.mark.parametrize("sampler", [OneStep(init=Init()), MaskGIT(steps=3), MaskGen(steps=3), RandomOrder(steps=3)])
def test_samplers(sampler):
    checked(type(sampler).sample)(sampler, CountingTeacher(), labels(4), rng())
    if isinstance(sampler, OneStep):
        checked(OneStep.probs)(sampler, CountingTeacher(), labels(4), rng())
    checked(truncate.truncate)(torch.randn(2, 3, 5), 2, 0.9)
    checked(most_confident)(torch.randn(2, 6), torch.randn(2, 6), 3, 1.0)


def test_metrics():
    x = torch.randn(9, 3, generator=rng())
    moments = frechet.Moments()
    checked(frechet.Moments.add)(moments, x)
    m, c = checked(frechet.Moments.gaussian)(moments)
    checked(frechet.matrix_sqrt)(c)
    checked(frechet.frechet_distance)(m, c, m, c)
    checked(inception_score.inception_score)(x, 2)
    radii = checked(neighbors.squared_radii)(x, 2)
    checked(neighbors.count)(x, x[:5], radii, radii[:5])
    checked(neighbors.subsample)(x, 4)
    checked(extract)(Pooled(), torch.rand(3, 1, 4, 6))


def test_searches():
    def start(cond, rng):
        return torch.randn(len(cond), 2, 3, generator=rng)

    for method in (BestOfN(n=2), TTEO(starts=2, candidates=3, iterations=2, unit=1.0)):
        found = checked(type(method).run)(
            method, lambda e, c: e[:, None], lambda img, c: img.sum((1, 2, 3)), start, labels(4), rng()
        )
        assert found.trace.shape[2] == 4


def test_wrong_shapes_are_rejected():
    with pytest.raises(TypeCheckError):
        checked(neighbors.count)(torch.zeros(3, 2), torch.zeros(3, 4), torch.zeros(3), torch.zeros(3))
    with pytest.raises(TypeCheckError):
        checked(frechet.matrix_sqrt)(torch.zeros(2, 3))
