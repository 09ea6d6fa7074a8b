from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import softdimo
from softdimo.build import PRODUCT
from softdimo.errors import CheckpointError, DataError, PluginError, WeightsError
from softdimo.export import export
from softdimo.runs.lineage import ancestry
from tests.report.fake import evaluation, write_json
from tests.tiny import finished


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = finished(tmp_path_factory.mktemp("work"))
    write_json(made / "eval.json", evaluation())
    return made


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, tmp_path_factory.mktemp("out") / "model")


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "model"))


def test_an_export_loads_back_equal(run: Path, exported: Path) -> None:
    here, there = softdimo.load(run, device="cpu"), softdimo.load(exported, device="cpu")
    assert torch.equal(here.logits([0, 1], seed=3), there.logits([0, 1], seed=3))
    assert torch.equal(here([1, 0, 1], seed=5), there([1, 0, 1], seed=5))
    assert here.classes == there.classes == ("even", "odd")
    assert there.shape == (4, 4, 1, 16)
    assert there.image == (1, 8, 8)


def test_its_weights_are_those_of_the_run(run: Path, exported: Path) -> None:
    for theirs, mine in ((run / PRODUCT, "student"), (ancestry(run)[0][0] / PRODUCT, "tokenizer")):
        a, b = load_file(theirs), load_file(exported / f"{mine}.safetensors")
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_three_lines_of_python_load_it_elsewhere(exported: Path, tmp_path: Path) -> None:
    there = shutil.move(shutil.copytree(exported, tmp_path / "a"), tmp_path / "b")
    lines = [
        "import softdimo",
        f"g = softdimo.load({str(there)!r}, device='cpu')",
        "images = g(labels=[0, 1, 0], seed=0)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, "print(*images.shape)"])],
        capture_output=True, text=True, cwd=tmp_path, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["3", "1", "8", "8"]


def test_importing_softdimo_needs_no_torch() -> None:
    code = "import sys, softdimo; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_drawing_is_seeded_and_follows_labels(exported: Path) -> None:
    g = softdimo.load(exported, device="cpu")
    state = torch.get_rng_state()
    a, b, c = g(["odd", 0], seed=1), g([1, "even"], seed=1), g([1, 0], seed=2)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())
    assert 0 <= float(a.min()) <= float(a.max()) <= 1
    assert g().shape == (2, 1, 8, 8)
    tokens = g.tokens([0, 1, 0], seed=4)
    assert tokens.shape == (3, 16, 1)
    assert int(tokens.max()) < 16
    assert torch.equal(g.tokenizer.decode(g.tokens([0], seed=9)).clamp(0, 1), g([0], seed=9))
    assert g.passes == 1.0
    assert g.to("cpu").device == torch.device("cpu")


def test_a_soft_decode_is_that_of_the_expected_codes(exported: Path) -> None:
    g = softdimo.load(exported, device="cpu")
    wanted = g.tokenizer.decode_soft(g.logits([1], seed=2).div(0.5).softmax(-1)).clamp(0, 1)
    assert torch.equal(g([1], seed=2, temperature=0.5, decode="soft"), wanted)


@pytest.mark.parametrize("label", ["wasp", 2, -1, "0"])
def test_unknown_labels_are_named_with_those_that_exist(exported: Path, label: int | str) -> None:
    with pytest.raises(DataError, match=r"no class is called .*names: even, odd"):
        softdimo.load(exported, device="cpu")([label])


def test_a_teacher_is_exported_with_its_sampler(run: Path, tmp_path: Path) -> None:
    teacher = ancestry(run)[1][0]
    g = softdimo.load(export(teacher, tmp_path / "t"), device="cpu")
    assert (tmp_path / "t" / "teacher.safetensors").is_file()
    assert g.passes == 3.0
    assert torch.equal(g([0, 1], seed=3), softdimo.load(teacher, device="cpu")([0, 1], seed=3))
    with pytest.raises(DataError, match="one-step student"):
        g([0], decode="soft")


def test_the_card_and_the_recipe_say_what_it_is(run: Path, exported: Path) -> None:
    assert sorted(p.name for p in exported.iterdir()) == [
        "card.md", "recipe.yaml", "student.safetensors", "tokenizer.safetensors"]  # fmt: skip
    card = (exported / "card.md").read_text()
    for said in (
        "# Tiny student", "4 iterations of 8 samples", "L_gen = L_DiMO + w_GAN L_GAN", "arXiv 2503.15457", "9.4 ± 0.3",
        "evaluator hash: `9f86d081", "softdimo.load(", "Handwritten digits", "Apache-2.0", "torch ",
    ):  # fmt: skip
        assert said in card, said
    recipe = (exported / "recipe.yaml").read_text()
    assert "weights: tokenizer.safetensors" in recipe
    assert "recipe: teacher.yaml" in recipe
    assert str(run.parent.parent) not in recipe + card
    with safe_open(exported / "student.safetensors", "pt") as file:
        about = file.metadata()
    assert about["softdimo.version"] == softdimo.__version__
    assert json.loads(about["softdimo.classes"]) == ["even", "odd"]


def rewrite(file: Path, change: str) -> None:
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        about = dict(opened.metadata())
    name = next(iter(tensors))
    if change == "value":
        tensors[name].view(-1)[0] += 1
    elif change == "key":
        tensors["other"] = tensors.pop(name)
        del about["softdimo.sha256"]
    elif change == "format":
        about["softdimo.format"] = "99"
    else:
        del about["softdimo.classes"]
    save_file(tensors, file, about)


@pytest.mark.parametrize(
    ("change", "message"),
    [("value", "was changed after it was written"), ("key", "does not fit"), ("format", "has format 99, not 1"),
     ("about", "does not say its classes")],
)  # fmt: skip
def test_changed_weights_are_refused(model: Path, change: str, message: str) -> None:
    rewrite(model / "student.safetensors", change)
    with pytest.raises(WeightsError, match=message) as caught:
        softdimo.load(model, device="cpu")
    assert caught.value.code == 3


def test_a_changed_tokenizer_is_refused(model: Path) -> None:
    rewrite(model / "tokenizer.safetensors", "value")
    with pytest.raises(WeightsError, match=r"tokenizer\.safetensors was changed"):
        softdimo.load(model, device="cpu")


@pytest.mark.parametrize("name", ["student.safetensors", "tokenizer.safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 0.5])
def test_truncated_weights_are_refused(model: Path, name: str, keep: float) -> None:
    raw = (model / name).read_bytes()
    (model / name).write_bytes(raw[: int(keep * len(raw)) if keep == 0.5 else int(keep)])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        softdimo.load(model, device="cpu")


@pytest.mark.parametrize("change", ["gone", "other"])
def test_another_recipe_is_refused(model: Path, change: str) -> None:
    if change == "gone":
        (model / "recipe.yaml").unlink()
    else:
        (model / "recipe.yaml").write_text((model / "recipe.yaml").read_text().replace("width: 16", "width: 8"))
    with pytest.raises(WeightsError, match="is missing or is not the one"):
        softdimo.load(model, device="cpu")


def test_a_component_that_is_not_installed_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softdimo import registry

    find = registry.find

    def without(kind: str, use: str) -> type:
        if use == "compact":
            raise PluginError("no teacher is called `compact`")
        return find(kind, use)

    monkeypatch.setattr(registry, "find", without)
    with pytest.raises(PluginError, match="no teacher is called `compact`"):
        softdimo.load(model, device="cpu")


def test_an_unfinished_run_and_one_that_draws_nothing_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="trained a tokenizer; only a student or a teacher draws images"):
        export(ancestry(run)[0][0], tmp_path / "x")
    unfinished = finished(tmp_path / "w")
    (unfinished / PRODUCT).unlink()
    with pytest.raises(CheckpointError, match="is not finished"):
        export(unfinished, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_weights_that_are_gone_are_named(tmp_path: Path) -> None:
    run = finished(tmp_path)
    (ancestry(run)[0][0] / PRODUCT).unlink()
    with pytest.raises(WeightsError, match=r"tokenizer\.yaml.*has none; run its recipe again"):
        softdimo.load(run, device="cpu")


def test_an_export_replaces_an_export_and_nothing_else(run: Path, tmp_path: Path) -> None:
    out = export(run, tmp_path / "m")
    (out / "card.md").write_text("old")
    export(run, out)
    assert (out / "card.md").read_text() != "old"
    other = tmp_path / "photos"
    other.mkdir()
    (other / "me.png").write_text("")
    with pytest.raises(CheckpointError, match="exists and is no export"):
        export(run, other)
    assert [p.name for p in other.iterdir()] == ["me.png"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="exists and is no export"):
        export(run, tmp_path / "file")


def test_a_failure_leaves_the_old_export_whole(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export(run, tmp_path / "m")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    monkeypatch.setattr("softdimo.report.card.card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(run, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="neither an exported model nor a run folder"):
        softdimo.load(tmp_path)
