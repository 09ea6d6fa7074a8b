"""Class labels alone: names, contract, and a distillation that has nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from softdimo import recipe as recipes
from softdimo import run
from softdimo.cli.check import check
from softdimo.errors import DataError
from softdimo.kinds import Context, ImageShape
from softdimo_plugins.data.labels import Labels

BLANK = Context(ImageShape(1, 1, 1), (), print)


def test_names() -> None:
    assert Labels(classes=3).build(BLANK).classes == ("0", "1", "2")
    assert Labels(classes=("a", "b")).build(BLANK).classes == ("a", "b")
    names = Labels(classes="imagenet").build(BLANK).classes
    assert len(set(names)) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")


def test_without_torchvision_numbers_stand_in_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert Labels(classes="imagenet").build(BLANK).classes == tuple(map(str, range(1000)))
    assert "pip install 'softdimo[timm]'" in caplog.text


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"classes": []}, {"classes": "cifar"}, {"channels": 2}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Labels.model_validate(wrong)


def test_shape_conditions_and_splits() -> None:
    data = Labels().build(BLANK)
    assert (data.image, len(data.classes), data.has_images) == ((3, 256, 256), 1000, False)
    assert torch.equal(torch.bincount(data.conditions(50_000).labels), torch.full((1000,), 50))
    assert data.fingerprint() != Labels(classes=10).build(BLANK).fingerprint()
    with pytest.raises(DataError, match="no split 'test'"):
        data.source("test")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe without a single image, for a teacher that was trained on some."""
    folder = tmp_path_factory.mktemp("labels")
    network = (
        "hardware: {jobs: 1}\ntokenizer: {use: gray, levels: 4}\nteacher: {use: compact, width: 16, depth: 2, heads: 2"
    )
    (folder / "teacher.yaml").write_text(
        f"title: Teacher\ndata: {{use: digits}}\n{network}}}\n"
        "train: {network: teacher, iterations: 2, batch_size: 4, sample_every: 9}\n"
    )
    path = folder / "student.yaml"
    path.write_text(
        "title: Labels alone\ndata: {use: labels, classes: [even, odd], size: 8, channels: 1}\n"
        f"{network}, weights: {{recipe: teacher.yaml}}}}\n"
        "train: {iterations: 2, batch_size: 4, sample_every: 2, terms: [{use: dimo}]}\n"
    )
    return path


def test_a_student_learns_from_labels_alone(student: Path) -> None:
    folder = run.run(recipes.load(student), student.parent / "runs" / "alone", say=lambda text: None)
    assert (folder / "weights.safetensors").is_file()
    assert len(list((folder / "samples").glob("*.png"))) == 1


def test_a_term_that_needs_tokens_says_so_before_anything_is_trained(student: Path) -> None:
    gan = "train.terms=[{use: dimo}, {use: gan, discriminator: {use: teacher_features, hidden: 4}}]"
    loaded, out = recipes.load(student, [gan]), student.parent / "runs" / "gan"
    message = "the term `gan` looks at real tokens, and the data `labels` gives class labels alone; use data with"
    with pytest.raises(DataError, match=message):
        run.run(loaded, out, say=lambda text: None)
    assert not (out / "log.csv").exists()
    with pytest.raises(DataError, match=message):
        check(loaded)
    check(recipes.load(student))


def test_a_network_of_images_says_what_it_needs(student: Path) -> None:
    change = ["tokenizer={use: conv_vq, patch: 2, codebook: 4, width: 4}", "train.network=tokenizer", "train.terms=[]"]
    with pytest.raises(DataError, match="training a tokenizer needs images, and the data `labels` has none"):
        run.run(recipes.load(student, change), student.parent / "runs" / "images", say=lambda text: None)
