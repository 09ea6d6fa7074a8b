"""Rows of prompts: one image of each prompt for each seed, metrics that write files, and rows that are interrupted."""

import json
from pathlib import Path

import pytest
import torch

from softdimo import testing
from softdimo.evaluate import Pieces, Subject, evaluate, parts
from softdimo.kinds import Batch, Cond
from softdimo.runs.ranks import ALONE, Ranks
from softdimo_plugins.metrics.command import Command
from softdimo_plugins.metrics.geneval import Geneval
from tests import ranks, scorers
from tests.helpers import Blobs, CountingTeacher, Failing, Painter

LINES = [{"tag": tag, "include": [], "prompt": f"a photo of {tag}"} for tag in ("single_object", "colors", "position")]


class Asked(Blobs):
    """Prompts alone."""

    has_images = False

    def source(self, split):
        source = super().source(split)
        source.get = lambda index: Batch(self.conditions(int(index.max()) + 1)[index])
        return source

    def conditions(self, n):
        prompts = tuple(LINES[i % len(LINES)]["prompt"] for i in range(n))
        return Cond(torch.full((n,), -1), prompts)

    def fingerprint(self):
        return "three prompts"


class Unlabeled(CountingTeacher):
    """Takes the length of the prompt for a label."""

    def forward(self, e, cond, at=None, features=()):
        assert (cond.labels == -1).all()
        return super().forward(e, Cond(torch.tensor([len(p) % 3 for p in cond.prompts])), at, features)


def metrics(folder):
    """GenEval, and a program that looks at all images together, each in a folder of programs."""
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    told = {"metadata": str(folder / "metadata.jsonl"), "keep": str(folder / "kept")}
    geneval = {"use": "geneval", "command": scorers.write(folder, scorers.GENEVAL, "geneval.py"), **told}
    whole = {"use": "command", "command": scorers.write(folder, scorers.SET, "set.py")}

    def made():
        return {
            "geneval": Geneval.model_validate(geneval).build(testing.context()),
            "command": Command.model_validate(whole).build(testing.context()),
        }

    return made


def run(path, folder, sampler=None, who=ALONE, seeds=(0, 1), samples=12, batch_size=2):
    row = Subject("student", "student", Unlabeled(), sampler or Failing())
    pieces = Pieces(Asked(), metrics(folder), [row], Painter(), ranks=who)
    return evaluate(pieces, path, samples=samples, seeds=seeds, batch_size=batch_size)


def test_seeds_are_images_of_the_same_prompts(tmp_path):
    table = run(tmp_path / "eval.json", tmp_path)
    (row,) = table["rows"]
    assert (row["n"], row["n_seed"], row["prompts"]) == (12, 6, 3)
    assert set(row["metrics"]) == {"geneval", "geneval_single_object", "geneval_colors", "geneval_position", "mine"}
    values = row["metrics"]["geneval"]["values"]
    assert row["metrics"]["geneval"]["value"] == pytest.approx(sum(values) / 2)
    geneval, whole = (scorers.calls(tmp_path, f"{name}.log") for name in ("geneval", "set"))
    assert [len(call["images"]) for call in geneval] == [6, 6]
    assert [len(call["images"]) for call in whole] == [6, 6, 12], "each seed by itself, and all together"
    assert [image["seed"] for image in whole[2]["images"]] == [0] * 6 + [1] * 6
    assert [image["prompt"] for image in whole[2]["images"]] == [line["prompt"] for line in LINES] * 4
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["student", "student, seed 0", "student, seed 1"]
    samples = sorted(p.name for p in (tmp_path / "kept" / "student" / "00001" / "samples").iterdir())
    assert samples == ["0000.png", "0001.png", "0002.png", "0003.png"]
    assert not (tmp_path / "eval-parts").exists()
    assert table["evaluator"]["geneval"]["program scorer"] == "mine"


def test_one_seed_needs_one_call_and_one_folder(tmp_path):
    run(tmp_path / "eval.json", tmp_path, seeds=(3,))
    assert [len(call["images"]) for call in scorers.calls(tmp_path, "set.log")] == [12]
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["student"]


@pytest.mark.parametrize("after", [1, 3, 5])
def test_an_interrupted_row_finds_its_images(after, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "EVERY", -1)
    (tmp_path / "a").mkdir()
    expected = run(tmp_path / "whole.json", tmp_path / "a")["rows"][0]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "eval.json", tmp_path, Failing(after))
    kept = list((tmp_path / "eval-parts").rglob("*.png"))
    assert len(kept) == len({path.name for path in kept}) >= 1
    again = Failing()
    found = run(tmp_path / "eval.json", tmp_path, again)["rows"][0]
    assert again.calls == 6 - after
    assert found["metrics"] == expected["metrics"]
    assert [len(call["images"]) for call in scorers.calls(tmp_path, "geneval.log")] == [6, 6], "none was scored twice"
    assert not (tmp_path / "eval-parts").exists()


def test_a_finished_row_asks_no_program_but_for_its_provenance(tmp_path):
    first = run(tmp_path / "eval.json", tmp_path)
    before = len(scorers.calls(tmp_path, "set.log"))
    again = Failing()
    assert run(tmp_path / "eval.json", tmp_path, again) == first
    assert again.calls == 0
    assert len(scorers.calls(tmp_path, "set.log")) == before


def on_a_rank(path, folder):
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    me = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return run(Path(path), Path(folder), who=me)["rows"][0]["metrics"]


def test_two_ranks_share_the_images_and_the_first_asks(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    alone = run(tmp_path / "alone.json", tmp_path / "a")["rows"][0]["metrics"]
    found = ranks.run(2, on_a_rank, str(tmp_path / "two.json"), str(tmp_path / "b"))
    assert found == [alone, alone]
    assert [len(call["images"]) for call in scorers.calls(tmp_path / "b", "set.log")] == [6, 6, 12]
    lines = (tmp_path / "b" / "set.log").read_text().splitlines()
    assert len(lines) == 4, "and once for what the numbers rest on"
