"""Precision, recall, density and coverage against brute force."""

import math

import pytest
import torch

from softdimo.errors import DataError
from softdimo_plugins.metrics.density_coverage import DensityCoverageMetric
from softdimo_plugins.metrics.neighbors import count, squared_radii, subsample
from softdimo_plugins.metrics.precision_recall import PrecisionRecallMetric
from tests.helpers import Identity, Pooled, labels, measure, points, rng


def brute(real, fake, k):
    """The formulas, one pair at a time."""

    def radius(x, i):
        return sorted(math.dist(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1]

    real, fake = real.double().tolist(), fake.double().tolist()
    rr, rf = [radius(real, i) for i in range(len(real))], [radius(fake, i) for i in range(len(fake))]
    inside = [[math.dist(r, f) <= rr[i] for i, r in enumerate(real)] for f in fake]
    return {
        "precision": sum(any(row) for row in inside) / len(fake),
        "recall": sum(any(math.dist(r, f) <= rf[j] for j, f in enumerate(fake)) for r in real) / len(real),
        "density": sum(map(sum, inside)) / (k * len(fake)),
        "coverage": sum(any(row[i] for row in inside) for i in range(len(real))) / len(real),
    }


@pytest.mark.parametrize(("n", "m"), [(30, 30), (40, 17), (12, 45)])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_neighbor_metrics_are_their_formulas(n, m, k, chunk, monkeypatch):
    monkeypatch.setattr("softdimo_plugins.metrics.neighbors.CHUNK", chunk)
    real, fake = points(n, 2, n), points(m, 2, m + k) * 0.8 + 1.3
    expected = brute(real, fake, k)
    found = measure(PrecisionRecallMetric(Identity(), k, 1000, 1000), real, fake, batch=8)
    found |= measure(DensityCoverageMetric(Identity(), k, 1000, 1000), real, fake, batch=9)
    assert found == pytest.approx(expected)
    assert len(set(expected.values())) > 2, "the case tells the numbers apart"


def test_neighbor_metrics_of_known_cases():
    x = points(300, 2)
    pr, dc = PrecisionRecallMetric(Identity(), 5, 1000, 1000), DensityCoverageMetric(Identity(), 5, 1000, 1000)
    same = measure(pr, x, x) | measure(dc, x, x)
    # among copies every ball holds its k neighbors and itself
    assert same == pytest.approx({"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1})
    far = measure(pr, points(0, 2), x + 100) | measure(dc, points(0, 2), x + 100)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    one = x[:1] + 1e-3 * points(50, 2)
    collapsed = measure(pr, points(0, 2), one) | measure(dc, points(0, 2), one)
    assert collapsed["precision"] == 1
    assert collapsed["recall"] < 0.1
    assert collapsed["coverage"] < 0.1


def test_a_radius_excludes_the_point_itself():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert squared_radii(x, 1).tolist() == [1, 1, 4, 16]
    assert squared_radii(x, 3).tolist() == [49, 36, 16, 49]
    assert squared_radii(torch.zeros(3, 2), 2).tolist() == [0, 0, 0], "copies are neighbors at distance 0"
    with pytest.raises(DataError, match="more than 4 images, there are 4"):
        squared_radii(x, 4)


def test_balls_are_closed():
    counts = count(torch.tensor([[0.0], [9.0]]), torch.tensor([[2.0]]), torch.tensor([4.0, 1.0]), torch.tensor([49.0]))
    assert counts.balls.tolist() == [1]
    assert counts.covered.tolist() == [True, False]
    assert counts.recalled is not None
    assert counts.recalled.tolist() == [True, True]


def test_neighbors_far_from_the_origin_keep_their_distances():
    real, fake = points(60, 3, 1), points(40, 3, 2)
    near = measure(PrecisionRecallMetric(Identity(), 3, 100, 100), real, fake)
    assert measure(PrecisionRecallMetric(Identity(), 3, 100, 100), real + 512, fake + 512) == pytest.approx(
        near, abs=0.03
    )


def test_subsamples_are_fixed_and_recorded():
    x = torch.arange(10.0)[:, None]
    some = subsample(x, 4)
    assert torch.equal(some, subsample(x, 4))
    assert len(set(some.flatten().tolist())) == 4
    assert torch.equal(subsample(x, 10), x)
    metric = PrecisionRecallMetric(Identity(), 3, 20, 15)
    real, fake = points(50, 2, 1), points(40, 2, 2)
    found = measure(metric, real, fake)
    used = {k: v for k, v in brute(subsample(real, 20), subsample(fake, 15), 3).items() if k in found}
    assert found == pytest.approx(used)
    fingerprint = metric.fingerprint()
    assert (fingerprint["k"], fingerprint["reference_size"], fingerprint["reference_used"]) == (3, 50, 20)


def test_distances_are_shared_by_metrics_of_the_same_features(monkeypatch):
    from softdimo_plugins.metrics import neighbors

    calls = []
    monkeypatch.setattr(neighbors, "count", lambda *a: (calls.append(len(a[1])), count(*a))[1])
    net = Pooled()
    pr, dc = PrecisionRecallMetric(net, 3, 99, 99), DensityCoverageMetric(net, 3, 99, 99)
    real, *fakes = torch.rand(3, 20, 1, 4, 6, generator=rng()).unbind()
    for metric in (pr, dc):
        metric.reference(real, labels(20))
    for fake in fakes:
        for metric in (pr, dc):
            metric.reset()
            metric.update(fake, labels(20))
        together = pr.result() | dc.result()
        alone = DensityCoverageMetric(Pooled(), 3, 99, 99)
        alone.reference(real, labels(20))
        alone.update(fake, labels(20))
        assert alone.result() == {key: together[key] for key in ("density", "coverage")}
    assert calls == [20] * 4, "two rows, each counted once for the pair and once alone"
