"""`softdimo search` for prompts: a text encoder of somebody else's, a file of prompts, an exported student."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from softdimo.cli.find import find
from softdimo.cli.main import main
from softdimo.errors import RecipeError
from softdimo.export import export
from tests.cli.test_find import CPU, finished, scores, whole
from tests.fakes import distribution

TEXT = """\
from typing import ClassVar

from softdimo.kinds import TextEncoder
from softdimo.spec import NetworkSpec, Spec
import torch


class Encoder(TextEncoder):
    def encode(self, prompts):
        return {"states": torch.tensor([[float(len(p))] for p in prompts])}


class Letters(NetworkSpec):
    def build(self, context):
        return Encoder()

    def ready(self):
        return True


class Wordy(Spec):
    differentiable: ClassVar[bool] = True

    def __call__(self, img, cond):
        assert cond.tensors["states"][:, 0].tolist() == [len(p) for p in cond.prompts]
        return img.mean((1, 2, 3)) * cond.tensors["states"][:, 0]
"""


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished student with a text encoder, and a reward that reads its encodings."""
    entries = {
        "softdimo.text_encoder": {"letters": "fake_text:Letters"},
        "softdimo.reward": {"wordy": "fake_text:Wordy"},
    }
    monkeypatch.syspath_prepend(distribution(tmp_path / "site", "fake-text", entries, {"fake_text": TEXT}))
    monkeypatch.delitem(sys.modules, "fake_text", raising=False)
    home = finished(tmp_path / "home", "text_encoder: {use: letters}\n")
    for name in ("search.yaml", "section.yaml"):
        text = (home / name).read_text()
        line = next(line for line in text.splitlines() if "score:" in line)
        (home / name).write_text(text.replace(line, "  score: {use: wordy}"))
    monkeypatch.chdir(home)
    return home


def test_prompts_are_searched(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("a red fox\n\nan owl at night\n")
    more = ["--device", "cpu", "--prompts-file", "prompts.txt", "--compare", "search.batch_size=3", "search.rows=2"]
    assert main(["search", "search.yaml", "--prompt", "a cat, with a hat", "-o", "out", *more]) == 0
    found = whole(texts / "out")
    assert [r["text"] for r in found["conditions"]] == ["a cat, with a hat", "a red fox", "an owl at night"]
    assert "a_red_fox-" in found["conditions"][1]["key"]
    with pytest.raises(RecipeError, match="draws prompts, not classes: give --prompt instead of --labels"):
        find("search.yaml", ["odd"], overrides=CPU)


def test_an_exported_student_of_prompts_is_searched(texts: Path) -> None:
    export(Path("runs/student"), Path("model"))
    find("model", prompts=["a red fox"], out=Path("a"), overrides=CPU, section="section.yaml")
    find("search.yaml", prompts=["an owl", "a red fox"], out=Path("b"), overrides=CPU)
    assert scores(texts / "b")["a red fox 0"] == scores(texts / "a")["a red fox 0"]
    assert torch.tensor(scores(texts / "a")["a red fox 0"]).shape == (2, 3)
