"""Our numbers are those of the packages that papers use, on features of an extractor with random weights."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from softdimo.kinds import Context, Features, ImageShape
from softdimo_plugins.features.cnn import CNN
from softdimo_plugins.metrics.density_coverage import DensityCoverageMetric
from softdimo_plugins.metrics.frechet import FrechetMetric
from softdimo_plugins.metrics.inception_score import InceptionScoreMetric
from softdimo_plugins.metrics.precision_recall import PrecisionRecallMetric
from tests.helpers import labels, rng


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    spec = CNN(use="cnn", width=4, features=24)
    cnn = spec.build(Context(ImageShape(3, 16, 16), tuple("abcdefgh"), make=lambda spec: spec)).eval()

    class Logits(Features):
        """The classes' logits as features: unlike rectified ones they fill their space."""

        width = 8

        def __init__(self):
            super().__init__()
            self.cnn = cnn.requires_grad_(False)

        def forward(self, img):
            logits = 10 * self.cnn(img)[1]
            return logits, logits

    return Logits()


def pictures(n, seed, contrast):
    return (0.5 + contrast * (torch.rand(n, 3, 16, 16, generator=rng(seed)) - 0.5)).clamp(0, 1)


def ours(metric, real, fake, batch=37):
    for part in real.split(batch):
        metric.reference(part, labels(len(part)))
    metric.reset()
    for part in fake.split(batch):
        metric.update(part, labels(len(part)))
    return metric.result()


def test_frechet_distance(net):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    real, fake = pictures(300, 1, 1.0), pictures(200, 2, 0.9)
    stats = [fid_features_to_statistics(net(x)[0].double()) for x in (real, fake)]
    theirs = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    (m1, c1), (m2, c2) = ((s["mu"], s["sigma"]) for s in stats)
    root = np.real(sqrtm(c1 @ c2))
    found = ours(FrechetMetric(net), real, fake)["fd"]
    assert found == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    assert found == pytest.approx(((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root), rel=1e-4)
    assert found > 1e-6


@pytest.mark.parametrize("splits", [1, 4, 10])
def test_inception_score(net, splits):
    """torch-fidelity shuffles first unless told not to; softdimo's parts are consecutive, as ADM's are."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    fake = pictures(200, 2, 1.0)
    theirs = isc_features_to_metric(net(fake)[1], splits=splits, shuffle=False)["inception_score_mean"]
    metric = InceptionScoreMetric(net, splits)
    assert ours(metric, fake, fake)["inception_score"] == pytest.approx(theirs, rel=1e-9)


SIZES = [(90, 230), (230, 90), (150, 150)]


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall(net, n, m, k):
    from torch_fidelity.metric_prc import calculate_precision_recall_full, calculate_precision_recall_part

    real, fake = pictures(n, 1, 1.0), pictures(m, 2, 0.97)
    features = net(fake)[0].double(), net(real)[0].double()
    found = ours(PrecisionRecallMetric(net, k, None, None), real, fake)
    for theirs in (calculate_precision_recall_full, calculate_precision_recall_part):
        precision, recall = theirs(*features, k, 64)
        assert found == {"precision": pytest.approx(precision, rel=1e-6), "recall": pytest.approx(recall, rel=1e-6)}
    assert any(0 < value < 1 for value in found.values()), "the case tells something"


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_density_and_coverage(net, n, m, k):
    from prdc import compute_prdc

    real, fake = pictures(n, 1, 1.0), pictures(m, 2, 0.97)
    theirs = compute_prdc(net(real)[0].double().numpy(), net(fake)[0].double().numpy(), k)
    found = ours(PrecisionRecallMetric(net, k, None, None), real, fake)
    found |= ours(DensityCoverageMetric(net, k, None, None), real, fake)
    assert found == pytest.approx(theirs)
    assert found["density"] > 0.1
    assert any(0 < found[key] < 1 for key in ("precision", "recall", "coverage")), "the case tells something"
