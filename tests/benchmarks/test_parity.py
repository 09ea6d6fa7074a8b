"""The parity runner: what passes, what fails, what is skipped, and that nothing recorded is overlooked."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import parity
from parity_checks.case import Case
from parity_checks.registry import FAMILIES, kind

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def runner(capsys):
    """Exit status and printed lines for a folder."""

    def run(folder):
        code = parity.main([str(folder)])
        return code, capsys.readouterr().out.splitlines()

    return run


def halton(folder, stem="halton"):
    for part in ("tiny.json", "tiny.safetensors", "io.safetensors"):
        shutil.copy(DATA / f"halton_{part}", folder / f"{stem}_{part}")


def edit(path, **changes):
    save_file({**load_file(path), **changes}, path)


def test_variants_pass_and_others_are_skipped(tmp_path, runner):
    halton(tmp_path, "halton_other_words")
    (tmp_path / "nobody_tiny.json").write_text("{}")
    (tmp_path / "halton_trace.json").write_text("{}")
    code, lines = runner(tmp_path)
    assert code == 0
    assert lines[-1] == "1 passed, 0 failed"
    assert "passed  halton_other_words_tiny" in lines
    assert "skipped nobody_tiny: no check for nobody model" in lines
    assert "skipped halton_trace: no check for halton trace" in lines


def test_a_folder_without_recordings_does_not_pass(tmp_path, runner):
    assert runner(tmp_path) == (1, ["0 passed, 0 failed"])
    with pytest.raises(SystemExit, match="2"):
        runner(tmp_path / "missing")


def test_an_output_beyond_its_tolerance_fails(tmp_path, runner):
    halton(tmp_path)
    io = tmp_path / "halton_io.safetensors"
    edit(io, logits_cond=load_file(io)["logits_cond"] + 2e-5)
    code, lines = runner(tmp_path)
    assert code == 1
    assert lines[-1] == "0 passed, 1 failed"
    assert [line.split()[1] for line in lines if "***" in line] == ["logits_cond"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info["io"].update(more={}), "name other tensors: ['more']"),
        (lambda info: info["config"].update(depth=3), "depth: 2"),
        (lambda info: info["config"].update(proj=2), "proj: 2 is not supported"),
        (lambda info: info["config"].update(gated=True), "does not know: gated"),
        (lambda info: info.pop("config"), "KeyError: 'config'"),
    ],
)
def test_what_is_not_understood_fails(change, message, tmp_path, runner):
    halton(tmp_path)
    path = tmp_path / "halton_tiny.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
    code, lines = runner(tmp_path)
    assert code == 1
    assert any(line.startswith("FAILED") and message in line for line in lines)


def test_a_recorded_tensor_that_nothing_reads_fails(tmp_path, runner):
    halton(tmp_path)
    edit(tmp_path / "halton_io.safetensors", more=torch.ones(1))
    path = tmp_path / "halton_tiny.json"
    info = json.loads(path.read_text())
    info["io"]["more"] = {}
    path.write_text(json.dumps(info))
    code, lines = runner(tmp_path)
    assert code == 1
    assert any("nothing was compared with it: more" in line for line in lines)


@pytest.mark.parametrize("missing", ["halton_io.safetensors", "halton_tiny.safetensors"])
def test_a_missing_file_fails(missing, tmp_path, runner):
    halton(tmp_path)
    (tmp_path / missing).unlink()
    code, lines = runner(tmp_path)
    assert code == 1
    assert lines[-1] == "0 passed, 1 failed"


@pytest.mark.parametrize("content", ["", "[1]", "{", "null"])
def test_a_json_that_is_none_fails(content, tmp_path, runner):
    (tmp_path / "halton_tiny.json").write_text(content)
    assert runner(tmp_path)[1][-1] == "0 passed, 1 failed"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("maskgit_tiny", ("maskgit", "model")),
        ("maskgit_wide_trace", ("maskgit", "trace")),
        ("maskbit_tokenizer_tiny", ("maskbit_tokenizer", "model")),
        ("maskgen_text_quick_tiny", ("maskgen_text", "model")),
        ("meissonic_dimo_tiny", ("meissonic", "dimo")),
        ("meissonic_sampler_odd_tiny", ("meissonic", "sampler")),
        ("schedules", ("schedules", "model")),
    ],
)
def test_the_family_is_the_first_part_of_the_name(name, expected):
    assert kind(Path(f"{name}.json")) == expected
    assert expected[0] in FAMILIES


def test_gaps():
    case = Case(Path("x.json"), {}, {"a": torch.tensor([1.0, 4.0])}, unread={"a"})
    case.near("a", torch.tensor([1.0, 4.25]))
    case.near("a", torch.tensor([1.0, 4.25]), relative=True)
    case.near("a", torch.tensor([1.0, torch.nan]))
    case.equal("a", torch.tensor([1.0, 4.0]))
    case.equal("a", torch.tensor([2.0, 3.0]))
    case.equal("a", torch.tensor([[1.0, 4.0]]))
    assert [gap.error for gap in case.gaps[:2]] == [0.25, 0.0625]
    assert [gap.ok for gap in case.gaps] == [False, False, False, True, False, False]
    assert not case.unread
