"""Metrics against closed forms and brute force, invariances, and provenance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softdimo.errors import DataError
from softdimo.kinds import Cond
from softdimo_plugins.metrics.accuracy import AccuracyMetric
from softdimo_plugins.metrics.extract import extract
from softdimo_plugins.metrics.frechet import Frechet, FrechetMetric, Moments, frechet_distance, matrix_sqrt
from softdimo_plugins.metrics.inception_score import InceptionScoreMetric, inception_score
from softdimo_plugins.metrics.precision_recall import PrecisionRecallMetric
from tests.helpers import Identity, Pooled, context, images, labels, measure, points, rng


def spd(width, seed):
    a = points(width, width, seed, torch.float64)
    return a @ a.T + 0.1 * torch.eye(width)


# Fréchet distance


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 6), seed=st.integers(0, 999))
def test_frechet_of_commuting_gaussians_has_a_closed_form(width, seed):
    """For covariances with common eigenvectors it is |m1 - m2|^2 + sum (sqrt l1 - sqrt l2)^2."""
    q = torch.linalg.qr(points(width, width, seed, torch.float64)).Q
    l1, l2 = torch.rand(2, width, generator=rng(seed), dtype=torch.float64) * 3
    m1, m2 = points(2, width, seed + 1, torch.float64)
    expected = (m1 - m2).square().sum() + (l1.sqrt() - l2.sqrt()).square().sum()
    found = frechet_distance(m1, q @ torch.diag(l1) @ q.T, m2, q @ torch.diag(l2) @ q.T)
    assert found == pytest.approx(float(expected), abs=1e-10)


def test_frechet_of_general_gaussians_is_the_trace_of_the_root_of_the_product():
    for seed in range(5):
        c1, c2 = spd(5, seed), spd(5, seed + 50)
        roots = torch.linalg.eigvals(c1 @ c2).sqrt()  # the product is similar to a positive definite matrix
        expected = c1.trace() + c2.trace() - 2 * roots.real.sum()
        zero = torch.zeros(5, dtype=torch.float64)
        assert frechet_distance(zero, c1, zero, c2) == pytest.approx(float(expected), rel=1e-10)


def test_frechet_bounds_every_coupling_and_is_symmetric():
    """It is a squared transport cost: no linear map from one Gaussian to the other is cheaper."""
    c1, c2 = spd(4, 1), spd(4, 2)
    zero = torch.zeros(4, dtype=torch.float64)
    d = frechet_distance(zero, c1, zero, c2)
    assert d == pytest.approx(frechet_distance(zero, c2, zero, c1), rel=1e-10)
    for seed in range(20):
        turn = torch.linalg.qr(points(4, 4, seed, torch.float64)).Q
        a = matrix_sqrt(c2) @ turn @ torch.linalg.inv(matrix_sqrt(c1))  # A c1 A^T = c2
        cost = (a - torch.eye(4)) @ c1 @ (a - torch.eye(4)).T
        assert float(cost.trace()) >= d - 1e-9


def test_matrix_sqrt_of_singular_matrices():
    c = spd(5, 3)
    assert torch.allclose(matrix_sqrt(c) @ matrix_sqrt(c), c)
    flat = torch.outer(torch.ones(4), torch.ones(4)).double()
    assert torch.allclose(matrix_sqrt(flat) @ matrix_sqrt(flat), flat)


def test_frechet_from_samples_converges_to_the_truth():
    x = points(40_000, 3, 1) * torch.tensor([1.0, 2.0, 0.5]) + 1
    y = points(40_000, 3, 2) * torch.tensor([2.0, 1.0, 0.5])
    assert measure(FrechetMetric(Identity()), x, y)["fd"] == pytest.approx(3 + 1 + 1, rel=0.03)


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 70), seed=st.integers(0, 99))
def test_frechet_does_not_depend_on_batches_or_order(batch, seed):
    x, y = points(60, 3, seed), points(50, 3, seed + 1) * 2 + 100
    whole = measure(FrechetMetric(Identity()), x, y)["fd"]
    shuffled = y[torch.randperm(50, generator=rng(seed))]
    assert measure(FrechetMetric(Identity()), x, shuffled, batch=batch)["fd"] == pytest.approx(whole, rel=1e-9)


def test_moments_are_means_and_unbiased_covariances_far_from_zero():
    x = points(30, 4) + 1e4
    moments = Moments()
    for part in x.split(7):
        moments.add(part)
    mean, c = moments.gaussian()
    assert torch.allclose(mean, x.double().mean(0))
    assert torch.allclose(c, x.double().T.cov())


def test_frechet_is_invariant_to_rotations_and_shifts_and_scales_with_the_square():
    x, y = points(200, 3, 1), points(150, 3, 2) * 1.5 + 0.3
    d = measure(FrechetMetric(Identity()), x, y)["fd"]
    q = torch.linalg.qr(points(3, 3, 3)).Q
    assert measure(FrechetMetric(Identity()), x @ q + 5, y @ q + 5)["fd"] == pytest.approx(d, rel=1e-4)
    assert measure(FrechetMetric(Identity()), 3 * x, 3 * y)["fd"] == pytest.approx(9 * d, rel=1e-4)
    assert abs(measure(FrechetMetric(Identity()), x, x)["fd"]) < 1e-8


@pytest.mark.parametrize("generated", [2, 5, 11, 12, 13])
@pytest.mark.parametrize("real", [4, 40])
def test_frechet_of_few_images_is_that_of_their_covariances(real, generated):
    x, y = points(real, 12, 1), points(generated, 12, 2) * 2 + 1
    moments = []
    for each in (x, y):
        moments += each.double().mean(0), each.double().T.cov()
    found = measure(FrechetMetric(Identity()), x, y, batch=5)["fd"]
    assert found == pytest.approx(frechet_distance(*moments), rel=1e-6)


def test_frechet_says_when_there_are_too_few_images():
    metric = FrechetMetric(Identity())
    measure(metric, points(50, 8), points(8, 8))
    assert metric.notes() == ("fd: 8 generated images for 8 features, so the covariance is singular",)
    measure(metric, points(0, 8), points(9, 8))
    assert metric.notes() == ()
    with pytest.raises(DataError, match="at least 2 images, there are 1"):
        measure(metric, points(0, 8), points(1, 8))


# Inception score


def test_inception_score_of_known_cases():
    sure = 200.0 * torch.eye(7).repeat(5, 1)
    assert inception_score(sure) == pytest.approx(7)
    assert inception_score(torch.zeros(20, 7)) == pytest.approx(1)
    assert inception_score(sure[:1].expand(20, 7)) == pytest.approx(1), "one class only"
    mixed = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    mean = mixed.mean(0)
    expected = math.exp(float((mixed * (mixed / mean).log()).sum(1).mean()))
    assert inception_score(mixed.log()) == pytest.approx(expected)


def test_inception_score_splits_are_scored_apart():
    logits = 200.0 * torch.eye(4).repeat_interleave(5, 0)
    assert inception_score(logits, splits=1) == pytest.approx(4)
    assert inception_score(logits, splits=4) == pytest.approx(1), "each part has one class"
    assert inception_score(logits, splits=2) == pytest.approx(2)
    with pytest.raises(DataError, match="3 images cannot be split into 4"):
        inception_score(logits[:3], splits=4)
    metric = InceptionScoreMetric(Identity(), splits=2)
    assert measure(metric, points(0, 4), logits, batch=3) == {"inception_score": pytest.approx(2)}
    assert metric.fingerprint()["splits"] == 2


# accuracy


def test_accuracy_and_class_histogram():
    judge = AccuracyMetric(Identity())
    wanted = torch.tensor([0, 0, 1, 1, 2, 2])
    said = torch.tensor([0, 1, 1, 1, 1, 2])
    judge.reset()
    for part in (slice(0, 4), slice(4, 6)):
        judge.update(images(torch.nn.functional.one_hot(said[part], 3).float()), Cond(wanted[part]))
    # histograms (1, 4, 1) and (2, 2, 2) of 6
    assert judge.result() == {"accuracy": pytest.approx(4 / 6), "class_tv": pytest.approx(2 / 6)}
    judge.reset()
    judge.update(images(torch.eye(3)), Cond(torch.tensor([1, 2, 0])))
    assert judge.result() == {"accuracy": 0.0, "class_tv": 0.0}, "every class as often as asked, never when asked"
    with pytest.raises(DataError, match="-1 to 0"):
        judge.update(images(torch.eye(3)), Cond(torch.tensor([-1, 0, 0])))
    judge.reset()
    with pytest.raises(DataError, match="no images"):
        judge.result()


# what they share


def test_one_pass_per_batch_however_many_metrics():
    net = Pooled()
    metrics = [FrechetMetric(net), InceptionScoreMetric(net), AccuracyMetric(net), PrecisionRecallMetric(net, 3, 9, 9)]
    img = torch.rand(6, 1, 4, 6, generator=rng())
    for metric in metrics:
        metric.update(img, labels(6))
    assert net.calls == 1
    assert extract(net, img.clone())[0].equal(extract(net, img)[0])
    assert net.calls == 3, "another tensor is another batch"


def test_a_changed_batch_or_network_is_not_remembered():
    net = Pooled()
    img = torch.rand(6, 1, 4, 6, generator=rng())
    before = extract(net, img)[0]
    img.mul_(0.5)
    assert not extract(net, img)[0].equal(before)
    with torch.no_grad():
        net.w.mul_(2.0)
    assert torch.allclose(extract(net, img)[0], before)
    with torch.inference_mode():
        inner = torch.rand(2, 1, 4, 6)
        extract(net, inner)
        inner.zero_()
        assert extract(net, inner)[0].abs().max() == 0


def test_fingerprints_tell_networks_references_and_settings_apart():
    def fingerprint(metric, seed=0, n=20):
        metric.reference(torch.rand(n, 1, 4, 6, generator=rng(seed)), labels(n))
        return metric.fingerprint()

    base = fingerprint(FrechetMetric(Pooled()))
    assert base == fingerprint(FrechetMetric(Pooled()))
    assert base["reference_size"] == 20
    assert fingerprint(FrechetMetric(Pooled(1)))["features"] != base["features"]
    assert fingerprint(FrechetMetric(Pooled()), seed=1)["reference"] != base["reference"]
    other = fingerprint(InceptionScoreMetric(Pooled()))
    assert other["formula"] != base["formula"]
    assert other["features"] == base["features"]


def test_the_reference_hash_does_not_depend_on_batches():
    img = torch.rand(20, 1, 4, 6, generator=rng())
    whole, parts = FrechetMetric(Pooled()), FrechetMetric(Pooled())
    whole.reference(img, labels(20))
    for part in img.split(6):
        parts.reference(part, labels(len(part)))
    assert whole.fingerprint() == parts.fingerprint()


def test_reset_forgets_images_and_keeps_the_reference():
    real, fake = points(50, 3, 1), points(50, 3, 2)
    for metric in (FrechetMetric(Identity()), PrecisionRecallMetric(Identity(), 3, 99, 99)):
        first = measure(metric, real, fake)
        assert measure(metric, points(0, 3), real) != first
        assert measure(metric, points(0, 3), fake) == first


def test_settings_build_with_the_network_that_the_core_makes():
    made = []
    net = Pooled().train()

    def make(spec):
        made.append(spec)
        return net

    ctx = context()
    ctx = type(ctx)(ctx.image, ctx.classes, make)
    settings = Frechet.model_construct(use="frechet", features="a network", name="small")
    metric = settings.build(ctx)
    assert made == ["a network"]
    assert not net.training
    img = torch.rand(20, 1, 4, 6, generator=rng())
    metric.reference(img, labels(20))
    metric.update(img[:10], labels(10))
    assert list(metric.result()) == ["small/fd"]
