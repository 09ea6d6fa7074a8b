"""References from files: the same numbers as from the data, and files that cannot be trusted."""

import json

import numpy as np
import pytest
import torch

from softdimo.errors import DataError
from softdimo.math.digest import digest_module
from softdimo_plugins.metrics import reference
from softdimo_plugins.metrics.density_coverage import DensityCoverage, DensityCoverageMetric
from softdimo_plugins.metrics.frechet import Frechet, FrechetMetric
from softdimo_plugins.metrics.precision_recall import PrecisionRecallMetric
from tests.helpers import Pooled, context, labels, rng


def pictures(n, seed=0):
    """Bytes, as a file holds them, [N H W C]."""
    return torch.randint(0, 256, (n, 4, 6, 1), generator=rng(seed), dtype=torch.uint8)


def as_images(x):
    return x.permute(0, 3, 1, 2).contiguous().float() / 255


def result(metric, fake):
    metric.reset()
    metric.update(as_images(fake), labels(len(fake)))
    return metric.result()


@pytest.fixture
def file(tmp_path):
    """What ADM publishes: statistics of everything, and some images."""
    x = as_images(pictures(80))
    features = Pooled()(x)[0].detach().double().numpy()
    mu, sigma = features.mean(0), np.cov(features, rowvar=False)
    np.savez(tmp_path / "adm.npz", arr_0=pictures(50, 1).numpy(), mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma)
    return tmp_path / "adm.npz"


def test_frechet_of_a_file_is_that_of_the_images_it_was_made_from(file):
    by_images = FrechetMetric(Pooled())
    by_images.reference(as_images(pictures(80)), labels(80))
    by_file = FrechetMetric(Pooled(), file=file)
    fake = pictures(30, 5)
    assert result(by_file, fake)["fd"] == pytest.approx(result(by_images, fake)["fd"], rel=1e-6)
    by_file.reference(as_images(pictures(9, 8)), labels(9))
    assert result(by_file, fake)["fd"] == pytest.approx(result(by_images, fake)["fd"], rel=1e-6), "data is left alone"
    assert (by_images.compares_with, by_file.compares_with) == ("data", "file")
    found = by_file.fingerprint()
    assert found["reference_size"] == "unstated"
    assert found["reference"] == reference.digest(file) != by_images.fingerprint()["reference"]


def test_what_a_metric_keeps_is_what_another_reads(tmp_path):
    writer = FrechetMetric(Pooled())
    writer.reference(as_images(pictures(80)), labels(80))
    arrays = {key: tensor.numpy() for key, tensor in writer.statistics().items()}
    about = np.array(json.dumps(writer.fingerprint()))
    np.savez(tmp_path / "ours.npz", provenance=about, **arrays)
    reader = FrechetMetric(Pooled(), file=tmp_path / "ours.npz")
    assert reader.fingerprint()["reference_size"] == 80
    assert result(reader, pictures(30, 5)) == result(writer, pictures(30, 5))
    with pytest.raises(DataError, match=r"other features \(features differ\)"):
        FrechetMetric(Pooled(4), file=tmp_path / "ours.npz").fingerprint()


@pytest.mark.parametrize("batch", [7, 100])
def test_neighbors_of_a_file_are_its_images(file, batch, monkeypatch):
    monkeypatch.setattr(reference, "BATCH", batch)
    net = Pooled()
    fake = pictures(120, 5)
    for cls in (PrecisionRecallMetric, DensityCoverageMetric):
        by_images = cls(net, 3, None, None)
        by_images.reference(as_images(pictures(50, 1)), labels(50))
        by_file = cls(net, 3, None, None, file=file)
        assert result(by_file, fake) == result(by_images, fake)
        found = by_file.fingerprint()
        assert (found["reference_size"], found["reference_used"], found["samples_limit"]) == (50, 50, "all")
        assert found["reference"] == reference.digest(file)
        assert "chunks" not in found


def test_a_network_looks_at_a_file_once(file):
    net = Pooled()
    metrics = [cls(net, 3, None, None, file=file) for cls in (PrecisionRecallMetric, DensityCoverageMetric) * 2]
    fake = as_images(pictures(60, 5))
    for metric in metrics:
        metric.update(fake, labels(60))
    assert len({str(sorted(metric.result().items())) for metric in metrics}) == 2
    assert net.calls == 2, "the file and the samples"


def test_chunks_are_compared_apart_and_averaged(file):
    net, fake = Pooled(), pictures(103, 5)
    whole = DensityCoverageMetric(net, 3, None, None, chunks=5, file=file)
    parts = []
    for real, part in zip(pictures(50, 1).tensor_split(5), fake.tensor_split(5), strict=True):
        one = DensityCoverageMetric(net, 3, None, None)
        one.reference(as_images(real), labels(len(real)))
        parts.append(result(one, part))
    found = result(whole, fake)
    assert found == pytest.approx({key: sum(p[key] for p in parts) / 5 for key in found})
    assert found != result(DensityCoverageMetric(net, 3, None, None, file=file), fake)
    assert whole.fingerprint()["chunks"] == 5


def test_settings_find_the_file_or_say_what_to_fetch(file, tmp_path):
    net = Pooled()
    ctx = context()
    ctx = type(ctx)(ctx.image, ctx.classes, lambda spec: net)
    spec = Frechet.model_construct(use="frechet", features="a network", name="", reference=str(file))
    assert spec.build(ctx).compares_with == "file"
    assert spec.smoke().reference is None
    with pytest.raises(DataError, match=r"cannot read the reference .*nowhere\.npz.*VIRTUAL_imagenet256_labeled\.npz"):
        spec.model_copy(update={"reference": str(tmp_path / "nowhere.npz")}).build(ctx)
    neighbors = DensityCoverage.model_construct(
        use="density_coverage", features="a network", name="", k=3, reference_samples=None, samples=None, chunks=5,
        reference=str(file),
    )  # fmt: skip
    assert neighbors.build(ctx).chunks == 5
    assert neighbors.smoke() == neighbors.model_copy(update={"reference": None, "chunks": 1, "k": 1})


GOOD = {"mu": np.zeros(4), "sigma": np.eye(4)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(4)}, "has no sigma, which this metric needs; it holds mu"),
        ({"arr_0": np.zeros((2, 3))}, "has no mu and no sigma"),
        (GOOD | {"mu": np.zeros(5)}, r"mu \[5\] and sigma \[4, 4\] are no mean and covariance"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "statistics of 3 features, but the metric's network has 4"),
        (GOOD | {"mu": np.full(4, np.nan)}, "not finite"),
        (GOOD | {"sigma": np.triu(np.ones((4, 4)))}, "not symmetric"),
        (GOOD | {"mu": np.array([print] * 4, dtype=object)}, "cannot be read .*allow_pickle=False"),
    ],
)
def test_statistics_that_are_none(arrays, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        FrechetMetric(Pooled(), file=tmp_path / "x.npz").fingerprint()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (GOOD, "has no arr_0"),
        ({"arr_0": np.zeros((2, 4, 6, 3), np.float32)}, r"must hold images, uint8 .* is float32 \[2, 4, 6, 3\]"),
        ({"arr_0": np.zeros((2, 4, 6), np.uint8)}, "must hold images"),
        ({"arr_0": np.zeros((2, 3, 4, 6), np.uint8)}, "must hold images"),
        ({"arr_0": np.zeros((0, 4, 6, 3), np.uint8)}, "must hold images"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 4, 6, 3), np.uint8))}, "must hold images"),
        ({"arr_0": np.array([{}], dtype=object)}, "must hold images"),
    ],
)
def test_images_that_are_none(arrays, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        PrecisionRecallMetric(Pooled(), 3, None, None, file=tmp_path / "x.npz").fingerprint()


def test_damaged_files(file, tmp_path):
    data = file.read_bytes()
    for name, content in (("short", data[: len(data) // 2]), ("text", b"hello"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        for metric in (
            FrechetMetric(Pooled(), file=tmp_path / name),
            PrecisionRecallMetric(Pooled(), 3, None, None, file=tmp_path / name),
        ):
            with pytest.raises(DataError, match=r"not an npz file.*fetch it again"):
                metric.fingerprint()
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="is not an npz file"):
        FrechetMetric(Pooled(), file=tmp_path / "one.npy").fingerprint()
    where = data.index(pictures(50, 1).numpy().tobytes()[:40])
    (tmp_path / "flipped").write_bytes(data[:where] + b"????" + data[where + 4 :])
    with pytest.raises(DataError, match="damaged"):
        list(reference.read_images(tmp_path / "flipped"))


def test_the_digest_follows_the_content(file):
    before = reference.digest(file)
    np.savez(file, **GOOD)
    assert reference.digest(file) != before


def test_the_rules_before_a_network_are_part_of_the_fingerprint():
    class Ruled(Pooled):
        def settings(self):
            return {"uint8": "adm"}

    assert FrechetMetric(Ruled()).fingerprint()["uint8"] == "adm"
    assert FrechetMetric(Ruled()).fingerprint()["features"] == digest_module(Ruled())
    assert "uint8" not in FrechetMetric(Pooled()).fingerprint()
