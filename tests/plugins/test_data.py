"""The packaged data sets: splits, duplicates, provenance, and that no foreign module is ever imported."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from softdimo.errors import DataError
from softdimo.kinds import Context, ImageShape
from softdimo_plugins.data import animals as animals_module
from softdimo_plugins.data.animals import CLASSES, Animals
from softdimo_plugins.data.arrays import ArrayData, first_occurrences, stratified_split
from softdimo_plugins.data.digits import Digits
from softdimo_plugins.data.mnist import MNIST


def untouchable(spec):
    raise AssertionError("a data set has no nested components")


BLANK = Context(ImageShape(1, 1, 1), (), untouchable)


@pytest.fixture(scope="module")
def animals():
    return Animals().build(BLANK)


def everything(source):
    return source.get(torch.arange(len(source)))


def test_split_is_disjoint_complete_and_proportional():
    labels = np.random.RandomState(0).choice(4, 1000, p=[0.5, 0.3, 0.15, 0.05])
    train, held = stratified_split(labels, 137, seed=3)
    assert len(held) == 137
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(1000))
    share = np.bincount(labels[held], minlength=4) - np.bincount(labels) * 0.137
    assert np.abs(share).max() < 1


def test_split_depends_on_the_seed_only():
    labels = np.repeat(np.arange(5), 20)
    first, again, other = (stratified_split(labels, 10, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("held_out", [0, 10, 11])
def test_split_needs_something_on_both_sides(held_out):
    with pytest.raises(DataError, match=f"cannot hold out {held_out} of 10"):
        stratified_split(np.zeros(10, np.int64), held_out, 0)


def test_first_occurrences_keep_order():
    a, b, c = np.eye(3, dtype=np.uint8)
    assert first_occurrences(np.stack([b, a, b, c, a])).tolist() == [0, 1, 3]


def test_the_reference_of_metrics_has_no_mirror_images():
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 3, 4), dtype=np.uint8)
    data, plain = (ArrayData(images, np.arange(20) % 2, ("a", "b"), 4, 0, mirror) for mirror in (True, False))
    every = torch.arange(16)
    assert len(data.reference()) == len(plain.source("train")) == 16
    assert torch.equal(data.reference().get(every).images, plain.source("train").get(every).images)


def test_mirror_doubles_training_and_spares_the_held_out():
    images = np.random.RandomState(0).randint(0, 256, (20, 3, 4, 5)).astype(np.uint8)
    data = ArrayData(images, np.arange(20) % 2, ("a", "b"), held_out=4, seed=0, mirror=True)
    train, held = data.source("train"), data.source("held_out")
    assert (len(train), len(held)) == (32, 4)
    both = train.get(torch.tensor([5, 21, 5 + 16]))
    assert torch.equal(both.images[0].flip(-1), both.images[1])
    assert torch.equal(both.images[1], both.images[2])
    assert both.cond.labels[0] == both.cond.labels[1]


def test_unknown_split_is_named(animals):
    with pytest.raises(DataError, match=r"no split 'test'; this data set has train and held_out"):
        animals.source("test")


def test_animals_are_what_they_are(animals):
    train, held = everything(animals.source("train")), everything(animals.source("held_out"))
    assert animals.image == (1, 28, 28)
    assert animals.classes == CLASSES
    assert (len(train), len(held)) == (2 * 8716, 1000)
    assert train.images.dtype == torch.float32
    assert train.images.min() == 0
    assert train.images.max() == 1
    counts, sizes = (torch.bincount(y) for y in (held.cond.labels, animals.source("train").labels))
    assert len(counts) == 10
    assert (counts - sizes * 1000 / 9716).abs().max() < 1


def test_animals_held_out_are_never_trained_on(animals):
    train, held = everything(animals.source("train")), everything(animals.source("held_out"))
    seen = {image.numpy().tobytes() for image in train.images}
    assert len(seen) == len(train)  # no duplicates, mirror images included
    assert not any(image.numpy().tobytes() in seen for image in held.images)


def test_animals_without_mirror_images(animals):
    plain = Animals(mirror=False).build(BLANK)
    assert len(plain.source("train")) == 8716
    assert torch.equal(plain.source("train").images, animals.source("train").images)
    assert plain.fingerprint() != animals.fingerprint()


def test_fingerprint_follows_content_and_split():
    images, labels = np.zeros((20, 1, 4, 4), np.uint8), np.arange(20) % 2
    make = lambda x=images, y=labels, seed=0: ArrayData(x, y, ("a", "b"), 4, seed).fingerprint()  # noqa: E731
    assert make() == make()
    other = images.copy()
    other[7, 0, 2, 2] = 1
    assert len({make(), make(x=other), make(y=1 - labels), make(seed=1)}) == 4


def test_streams_give_batches(animals):
    batch = next(animals.stream(8, seed=0))
    assert batch.images.shape == (8, 1, 28, 28)
    assert len(batch.cond) == 8


def test_digits_by_parity_and_by_digit():
    parity, digit = Digits().build(BLANK), Digits(condition="digit").build(BLANK)
    assert (parity.image, parity.classes) == ((1, 8, 8), ("even", "odd"))
    assert digit.classes == tuple("0123456789")
    assert len(parity.source("train")) == 1497
    assert torch.equal(parity.source("train").images, digit.source("train").images)
    assert torch.equal(parity.source("train").labels, digit.source("train").labels % 2)
    assert everything(parity.source("train")).images.unique().numel() == 17


def test_mnist_has_500_of_each_digit():
    data = MNIST().build(BLANK)
    assert data.image == (1, 28, 28)
    assert torch.bincount(everything(data.source("train")).cond.labels).tolist() == [450] * 10
    assert torch.bincount(everything(data.source("held_out")).cond.labels).tolist() == [50] * 10
    ones = everything(data.source("held_out")).images[data.source("held_out").labels[data.source("held_out").rows] == 1]
    assert 0.03 < ones.mean() < 0.12  # a 1 has little ink


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(animals_module, "PACKAGE", "animal-shape-mnist-is-not-here")
    with pytest.raises(DataError, match=r"not installed; pip install 'softdimo\[demo\]'"):
        Animals().build(BLANK)


def fake_distribution(root, files):
    info = root / "animal_shape_mnist-0.38.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: animal-shape-mnist\nVersion: 0.38\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    for name, content in files.items():
        if content is not None:
            (root / name).write_bytes(content)


def test_changed_file_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    fake_distribution(tmp_path, {"animal_data_version_3.gz": b"changed", "animal_label_version_3.gz": b"changed"})
    monkeypatch.syspath_prepend(tmp_path)
    message = r"animal_data_version_3.gz of animal-shape-mnist 0.38 has sha256 \w{64}, expected 68a3.*pip install"
    with pytest.raises(DataError, match=message):
        Animals().build(BLANK)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"other.gz": b""}, "0.38 has no file animal_data_version_3.gz"),
        ({"animal_data_version_3.gz": None}, "cannot read"),
    ],
)
def test_incomplete_package_says_reinstall(tmp_path, monkeypatch, files, message):
    fake_distribution(tmp_path, files)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=f"{message}.*--force-reinstall"):
        Animals().build(BLANK)


def test_no_module_of_the_packages_is_imported():
    code = """
import sys
from softdimo.kinds import Context, ImageShape
from softdimo_plugins.data import animals, digits, mnist
for spec in animals.Animals(), digits.Digits(), mnist.MNIST():
    spec.build(Context(ImageShape(1, 1, 1), (), print))
foreign = {"animal_shape_mnist", "tensorflow", "pandas", "mlxtend", "sklearn", "scipy", "matplotlib"}
print(sorted(foreign & {name.partition(".")[0] for name in sys.modules}))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert out.stdout.strip() == "[]"
