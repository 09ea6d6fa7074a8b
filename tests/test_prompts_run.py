"""Recipes with prompts from end to end: training, resuming, the cache, measuring, search, samples, export, words."""

from __future__ import annotations

import io
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import softdimo
from softdimo import recipe as recipes
from softdimo import run
from softdimo.cli.check import check
from softdimo.cli.drawing import sample
from softdimo.cli.explain import explain
from softdimo.cli.main import main
from softdimo.errors import DataError, Interrupted, PluginError, RecipeError, WeightsError
from softdimo.export import export
from softdimo.recipe.schema import json_schema
from softdimo.report.card import card
from tests import prompted, tiny
from tests.prompted import PROMPTS, WordsNet, readers  # noqa: F401

pytestmark = pytest.mark.usefixtures("readers")


def quiet(text: str) -> None:
    """Says nothing."""


def picture(path: Path) -> tuple[tuple[int, int], str]:
    """Size and description of a PNG."""
    with Image.open(path) as image:
        return image.size, image.text["Description"]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    prompted.write(folder)
    return folder


@pytest.fixture(scope="module")
def trained(home: Path, readers: None) -> Path:  # noqa: F811
    return run.run(recipes.load(home / "student.yaml"), home / "runs" / "student", say=quiet)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that a text encoder is given from now on."""
    seen: list[str] = []
    encode = WordsNet.encode
    monkeypatch.setattr(WordsNet, "encode", lambda net, prompts: seen.extend(prompts) or encode(net, prompts))
    return seen


def test_a_student_learns_from_prompts_alone(trained: Path) -> None:
    assert (trained / "weights.safetensors").is_file()
    (sheet,) = (trained / "samples").glob("*.png")
    _, said = picture(sheet)
    held = recipes.load(trained).recipe.data.build(None).conditions(3).prompts  # type: ignore[arg-type]
    assert said.startswith(f"columns: {', '.join(held)}")
    report = (trained / "report.html").read_text()
    assert "Prompts are encoded by the text encoder toy_words." in report


def test_encodings_are_kept_beside_the_runs_and_no_later_run_makes_them(
    home: Path, trained: Path, counted: list[str]
) -> None:
    (folder,) = (home / "runs" / "cache" / "encodings").iterdir()
    assert json.loads((folder / "about.json").read_text())["tensors"]["states"]["shape"] == [5, 4]
    again = run.run(recipes.load(home / "student.yaml"), home / "runs" / "again", say=quiet)
    assert counted == []
    a, b = load_file(trained / "weights.safetensors"), load_file(again / "weights.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_without_the_cache_gives_the_same(home: Path, trained: Path, counted: list[str]) -> None:
    alone = home / "alone" / "student"
    run.run(recipes.load(home / "student.yaml", ["hardware.text_cache_gb=0"]), alone, say=quiet)
    assert sorted(set(counted)) == sorted([*PROMPTS, "ugly"])
    assert not (home / "alone" / "cache").exists()
    a, b = load_file(trained / "weights.safetensors"), load_file(alone / "weights.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_another_encoder_has_a_folder_of_its_own(home: Path, trained: Path, counted: list[str]) -> None:
    place = home / "runs" / "cache" / "encodings"
    before = set(place.iterdir())
    loaded = recipes.load(home / "student.yaml", ["text_encoder.half=true", "train.iterations=1"])
    run.run(loaded, home / "runs" / "half", say=quiet)
    assert counted
    (new,) = set(place.iterdir()) - before
    assert json.loads((new / "about.json").read_text())["tensors"]["states"]["dtype"] == "float16"


def test_an_interrupted_run_resumes_bit_exactly(
    home: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softdimo.engine.algorithm import Distillation

    step = Distillation.step

    def stopping(self: Distillation, iteration: int, real: object) -> object:
        if iteration == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, iteration, real)  # type: ignore[arg-type]

    monkeypatch.setattr(Distillation, "step", stopping)
    loaded = recipes.load(home / "student.yaml")
    with pytest.raises(Interrupted):
        run.run(loaded, tmp_path / "student", say=quiet)
    monkeypatch.undo()
    run.run(loaded, tmp_path / "student", resume=True, say=quiet)
    a, b = load_file(trained / "weights.safetensors"), load_file(tmp_path / "student" / "weights.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_rows_and_searches_have_prompts(home: Path, tmp_path: Path) -> None:
    folder = run.run(recipes.load(home / "measured.yaml"), tmp_path / "measured", say=quiet)
    table = json.loads((folder / "eval.json").read_text())
    assert {row["name"]: row["metrics"]["prompts"]["value"] for row in table["rows"]} == {"student": 6, "teacher": 6}
    found = json.loads((folder / "search.json").read_text())
    assert found["methods"][0]["name"].startswith("one step")


@pytest.mark.parametrize("change", ["text_encoder.negative=other", "text_encoder.half=true"])
def test_rows_of_another_text_encoder_are_measured_anew(home: Path, tmp_path: Path, change: str) -> None:
    """The teacher is the same; what it reads is not."""
    teacher = [
        "train=null",
        "search=null",
        "eval.rows=[{name: t, of: teacher, sampler: {use: random_order, steps: 2}}]",
    ]

    def key(*more: str) -> str:
        folder = run.eval_only(recipes.load(home / "measured.yaml", [*teacher, *more]), tmp_path / "".join(more[:1]))
        (row,) = json.loads((folder / "eval.json").read_text())["rows"]
        return str(row["key"])

    assert key() == key("hardware.text_cache_gb=0")
    assert key() != key(change)


def test_images_of_prompts(trained: Path) -> None:
    g = softdimo.load(trained, device="cpu")
    images = g(prompts=["a red cube", "snow"], seed=0)
    assert images.shape == (2, 1, 8, 8)
    assert torch.equal(images, g(prompts=["a red cube", "snow"], seed=0))
    assert not torch.equal(g.logits(prompts=["a red cube"], seed=0), g.logits(prompts=["snow"], seed=0))
    soft = g(prompts=["snow"], decode="soft")
    assert torch.equal(soft, g.tokenizer.decode_soft(g.logits(prompts=["snow"]).softmax(-1)).clamp(0, 1))
    assert g.tokens(prompts=["a new one"]).shape == (1, 64, 1)
    assert torch.equal(g.to("cpu")(prompts=["a red cube", "snow"], seed=0), images)
    for wrong in ({}, {"labels": [0]}, {"prompts": []}, {"prompts": "a red cube"}, {"labels": [0], "prompts": ["a"]}):
        with pytest.raises(DataError, match=r"draws for prompts: give `prompts=\[\"a red cube\""):
            g(**wrong)  # type: ignore[arg-type]


def test_a_model_of_classes_knows_no_prompts(tmp_path: Path) -> None:
    made = tiny.finished(tmp_path)
    with pytest.raises(DataError, match="has no text encoder"):
        softdimo.load(made, device="cpu")(prompts=["a"])
    with pytest.raises(RecipeError, match="has no text encoder, so it knows no prompts; give --labels"):
        sample(made, prompts=["a"], device="cpu")


def test_an_export_carries_the_text_encoder(trained: Path, tmp_path: Path) -> None:
    out = export(trained, tmp_path / "model")
    networks = [f"{name}.safetensors" for name in ("student", "text_encoder", "tokenizer")]
    assert sorted(p.name for p in out.iterdir()) == ["card.md", "recipe.yaml", *networks]
    here = softdimo.load(trained, device="cpu")(prompts=["a red cube", "new words"], seed=4)
    moved = shutil.move(out, tmp_path / "elsewhere")
    assert torch.equal(softdimo.load(moved, device="cpu")(prompts=["a red cube", "new words"], seed=4), here)
    said = (Path(moved) / "card.md").read_text()
    assert "* text encoder: `toy_words`" in said
    assert 'images = g(prompts=["a red cube"], seed=0)' in said
    assert "`text_encoder.safetensors`" in said
    assert "g.classes" not in said


@pytest.mark.parametrize("change", ["value", "gone", "cut"])
def test_a_changed_text_encoder_is_refused(trained: Path, tmp_path: Path, change: str) -> None:
    from tests.test_export import rewrite

    file = export(trained, tmp_path / "model") / "text_encoder.safetensors"
    if change == "value":
        rewrite(file, "value")
    elif change == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(WeightsError, match=r"text_encoder\.safetensors"):
        softdimo.load(tmp_path / "model", device="cpu")


def test_an_export_carries_what_its_encoder_reads(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP with a vocabulary of its own: the folder of it comes along."""
    from tests.plugins.test_text_clip import folder

    folder(tmp_path / "words", "!")
    clip = "{use: clip, width: 8, depth: 2, heads: 1, fresh: true, vocabulary: %s}" % (tmp_path / "words")
    loaded = recipes.load(home / "student.yaml", [f"text_encoder={clip}", "teacher.reads=8", "train.iterations=1"])
    made = run.run(loaded, tmp_path / "runs" / "clip", say=quiet)
    before = softdimo.load(made, device="cpu")(prompts=["a red cube"], seed=0)
    out = export(made, tmp_path / "model")
    assert (out / "text_encoder.vocabulary" / "vocab.json").is_file()
    assert "vocabulary: text_encoder.vocabulary" in (out / "recipe.yaml").read_text()
    assert str(tmp_path) not in (out / "recipe.yaml").read_text()
    shutil.rmtree(tmp_path / "words")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(softdimo.load(out, device="cpu")(prompts=["a red cube"], seed=0), before)
    shutil.rmtree(out / "text_encoder.vocabulary")
    with pytest.raises(WeightsError, match=r"has no text_encoder\.vocabulary; export it again"):
        softdimo.load(out, device="cpu")


def test_samples_on_the_command_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, out = ["sample", str(trained), "--device", "cpu"], tmp_path / "s.png"
    assert main([*where, "-p", "a red cube", "-p", "snow", "-n", "3", "-o", str(out)]) == 0
    assert picture(out)[1].startswith("columns: a red cube, snow; rows:")
    many = tmp_path / "many.txt"
    many.write_text("\n".join(f"picture {i}" for i in range(9)))
    assert main([*where, "--prompts-file", str(many), "-o", str(out)]) == 0
    size, said = picture(out)
    assert size == (3 * 88 + 2 * 6, 3 * 88 + 2 * 6)  # 8 pixels eleven times, and gaps
    assert said.startswith("picture 0; picture 1")
    capsys.readouterr()
    for arguments in ([], ["-l", "0"], ["-l", "0", "-p", "a"]):
        assert main([*where, *arguments, "-o", str(out)]) == 2
        assert "draws for text; give --prompts or --prompts-file, and no --labels" in capsys.readouterr().err


def test_a_term_that_needs_tokens_says_so(home: Path, tmp_path: Path) -> None:
    terms = "train.terms=[{use: dimo}, {use: gan, discriminator: {use: teacher_features, hidden: 4}}]"
    with pytest.raises(
        DataError, match="looks at real tokens, and the data `prompts` gives prompts alone; use data with"
    ):
        run.run(recipes.load(home / "student.yaml", [terms]), tmp_path / "x", say=quiet)


def test_words_about_it(home: Path, trained: Path) -> None:
    loaded = recipes.load(home / "student.yaml")
    told = explain(loaded)
    assert "text encoder  toy_words, tests/prompted.py; determined by its settings" in told
    assert "conditions from prompts" in told
    assert "* text encoder: `toy_words`" in card(trained, "student")
    schema = json_schema()
    assert "readers.text_encoder.toy_words" in schema["$defs"]
    assert schema["properties"]["text_encoder"]["anyOf"][0]["$ref"] == "#/$defs/component.text_encoder"


def test_check_counts_the_text_encoder_once(home: Path) -> None:
    told = io.StringIO()
    estimate = check(recipes.load(home / "student.yaml"), Console(file=told, width=120))
    (share,) = [s for s in estimate.shares if s.name.startswith("text encoder")]
    assert (share.name, share.role, share.parameters) == ("text encoder (toy_words)", "frozen", 257 * 4)
    assert not estimate.notes
    assert len(estimate.phases) == 2
    assert all(phase.size > 0 and not phase.unknown for phase in estimate.phases)
    assert "text encoder (toy_words), frozen" in told.getvalue()


def test_a_full_size_clip_is_counted_without_its_weights(home: Path) -> None:
    loaded = recipes.load(home / "student.yaml", ["text_encoder={use: clip, fresh: true}", "teacher.reads=1024"])
    estimate = check(loaded, Console(file=io.StringIO()))
    (share,) = [s for s in estimate.shares if s.name.startswith("text encoder")]
    assert share.parameters == 354_032_640
    assert share.total >= 4 * 354_032_640
    small = recipes.load(home / "student.yaml", ["text_encoder={use: clip, weights: x.safetensors}"], smoke=True)
    spec = small.recipe.text_encoder
    assert (spec.depth, spec.weights, spec.fresh) == (2, None, True)  # type: ignore[union-attr]


def test_an_encoder_without_weights_trains_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompted.Words, "ready", lambda spec: spec.weights is not None)
    with pytest.raises(PluginError, match="the text encoder `toy_words` has no `weights:`"):
        run.run(recipes.load(home / "student.yaml"), tmp_path / "x", say=quiet)
