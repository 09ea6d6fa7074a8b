from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from softdimo.build import Components
from softdimo.cli.check import check
from softdimo.errors import DataError, RecipeError
from softdimo.recipe import load
from tests import tiny


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tiny.write(tmp_path).parent)
    return tmp_path


def told(name: str, *overrides: str) -> tuple[Any, str]:
    out = io.StringIO()
    return check(load(name, overrides), Console(file=out, width=140)), out.getvalue()


def test_a_student_with_its_critics(home: Path) -> None:
    estimate, text = told("student.yaml")
    by_name = {s.name: s for s in estimate.shares}
    assert list(by_name) == ["student", "dimo's critic", "gan's critic", "tokenizer (conv_vq)", "teacher (compact)"]
    net = Components(load("student.yaml").recipe).fresh(load("student.yaml").recipe.teacher)
    count = sum(p.numel() for p in net.parameters())
    free = sum(p.numel() for n, p in net.named_parameters() if not n.startswith(net.frozen()))
    student = by_name["student"]
    assert (student.parameters, student.gradients, student.optimizer, student.ema) == (
        count,
        4 * free,
        8 * free,
        4 * free,
    )
    assert by_name["dimo's critic"].ema == 0
    gradients = [s.gradients for s in estimate.shares]
    assert estimate.networks == sum(s.total for s in estimate.shares) - sum(gradients) + max(gradients)  # one at a time
    waiting, _ = told("student.yaml", "train.terms.dimo.player.accumulate=2")
    assert waiting.networks == estimate.networks + by_name["dimo's critic"].gradients
    assert (by_name["teacher (compact)"].total, by_name["teacher (compact)"].gradients) == (4 * count, 0)
    assert [p.name for p in estimate.phases] == ["generator's turn", "turn of dimo's critic", "turn of gan's critic"]
    assert all(p.size > 0 and not p.unknown for p in estimate.phases)
    assert estimate.data >= 1497 * 8 * 8  # bytes
    assert estimate.fits
    assert "tokens: 4 x 4 positions, 1 group of 16 classes" in text
    assert re.search(r"about .* free on .*: fits", text)


def test_adapters_count_alone_and_recomputed_layers_do_not(home: Path) -> None:
    plain, _ = told("dimo.yaml", "train.batch_size=64")
    less, _ = told("dimo.yaml", "train.batch_size=64", "train.terms.dimo.auxiliary={use: lora, rank: 2}")
    psi = {s.name: s for s in less.shares}["dimo's critic"]
    layers = [(16, 48), (16, 16), (16, 64), (64, 16)] * 2 + [(16, 16)]
    assert psi.parameters == sum(2 * (a + b) for a, b in layers)
    assert (psi.weights, psi.gradients, psi.optimizer) == tuple(4 * psi.parameters * n for n in (1, 1, 2))
    rest = [s for s in less.shares if s is not psi]
    assert rest == [s for s in plain.shares if s.name != "dimo's critic"]
    again, _ = told("dimo.yaml", "train.batch_size=64", "hardware.activation_checkpointing=true")
    assert again.networks == plain.networks
    assert all(a.size < 0.8 * b.size for a, b in zip(again.phases, plain.phases, strict=True))


def test_layers_that_are_not_there_cannot_be_recomputed(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"override 1: hardware\.activation_checkpointing: .*names no layers"):
        told("tokenizer.yaml", "hardware.activation_checkpointing=true")


def test_the_critics_of_an_earlier_run_must_be_such_networks(home: Path) -> None:
    (home / "more.yaml").write_text(
        "title: More\nbase: student.yaml\ntrain:\n  start: {from: {recipe: dimo.yaml}}\n"
        "  terms: [{use: dimo, auxiliary: {use: lora, rank: 2}}, {use: dimo, name: other}]\n"
    )
    with pytest.raises(RecipeError, match=r"more\.yaml:4:\d+ train\.start\.from: the critic of `dimo` is another"):
        told("more.yaml")
    told("more.yaml", "train.start.critics=false")
    told("more.yaml", "train.terms.0.auxiliary=copy")
    told("more.yaml", "train.terms.0.auxiliary=none")


def test_memory_grows_with_the_batch(home: Path) -> None:
    small, _ = told("student.yaml")
    large, _ = told("student.yaml", "train.batch_size=800")
    assert small.networks == large.networks
    assert large.phases[0].size == pytest.approx(100 * small.phases[0].size, rel=0.05)


def test_what_does_not_fit_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softdimo.memory.sizes.available", lambda accelerator: ("CPU", 1000))
    estimate, text = told("student.yaml")
    assert not estimate.fits
    assert "does NOT fit; lower train.batch_size" in text


@pytest.mark.parametrize(
    ("name", "first"), [("teacher.yaml", "teacher (compact)"), ("tokenizer.yaml", "tokenizer (conv_vq)")]
)
def test_networks_trained_on_data(home: Path, name: str, first: str) -> None:
    estimate, _ = told(name)
    assert estimate.shares[0].name == first
    assert estimate.shares[0].role == "trained"
    assert [p.name for p in estimate.phases] == ["training turn"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("heads: 2", "heads: 3", r"student\.yaml:4:53 teacher\.heads: 3 does not divide width: 16"),
        ("patch: 2", "patch: 16", r"student\.yaml:3:34 tokenizer\.patch: 16 does not divide images of 8 x 8"),
        ("{use: teacher_features, hidden: 8}", "{use: teacher_features, blocks: [4]}",
         r"train\.terms\.1\.discriminator\.blocks: \[4\] not in this teacher"),
        ("width: 16", "width: 8", r"student\.yaml:4:.* teacher\.weights: teacher\.yaml makes weights of another shape"),
        ("codebook: 16", "codebook: 9", r"tokenizer\.weights: tokenizer\.yaml makes weights of another shape"),
        ("weights: {recipe: teacher.yaml}", "weights: no.safetensors", r"teacher\.weights: .*no\.safetensors does not"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_at_its_place(home: Path, old: str, new: str, said: str) -> None:
    text = (home / "student.yaml").read_text()
    assert old in text
    (home / "student.yaml").write_text(text.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        told("student.yaml")
    assert re.search(said, str(caught.value)), str(caught.value)
    assert caught.value.code == 2


def test_faults_of_needed_recipes_are_told_in_their_own_file(home: Path) -> None:
    text = (home / "teacher.yaml").read_text()
    (home / "teacher.yaml").write_text(text.replace("heads: 2", "heads: 5"))
    with pytest.raises(RecipeError, match=r"teacher\.yaml:4:53 teacher\.heads: 5 does not divide"):
        told("student.yaml")


def test_overrides_are_named(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"override 1: teacher\.heads: 3 does not divide"):
        told("student.yaml", "teacher.heads=3")


def test_a_missing_data_set_keeps_its_own_error(home: Path) -> None:
    with pytest.raises(DataError):
        told("student.yaml", "data={use: folder, path: elsewhere, size: 8, channels: 1}")


def test_it_trains_nothing_writes_nothing_and_needs_no_trainer(home: Path) -> None:
    before = sorted(home.rglob("*"))
    code = (
        "import sys; from softdimo.recipe import load; from softdimo.cli.check import check; "
        "check(load('student.yaml'));"
        "assert 'lightning_fabric' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "student" in done.stdout
    assert sorted(home.rglob("*")) == before
