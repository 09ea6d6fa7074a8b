"""Faults of a run reach the command line as one message and an exit code, without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from softdimo.build import PRODUCT
from softdimo.cli.main import main
from softdimo.evaluate import table
from softdimo_plugins.data import digits
from tests import tiny

ALONE = ("hardware.jobs=1", "hardware.threads=1", "hardware.accelerator=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("messages")).parent


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main([str(a) for a in (*arguments, *(ALONE if arguments[0] == "run" else ()))])
    out = capsys.readouterr()
    assert "Traceback" not in out.out + out.err
    return code, out.err


def test_a_wrong_recipe(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(tiny.JUDGE.replace("iterations", "iteration"), encoding="utf-8")
    code, said = cli(capsys, "run", file)
    assert code == 2
    assert f"{file}:4:" in said
    assert "did you mean `iterations`" in said
    assert cli(capsys, "run", tmp_path / "absent.yaml")[0] == 2


def test_missing_weights(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = tmp_path / "absent.safetensors"
    code, said = cli(capsys, "run", folder / "teacher.yaml", "--out", tmp_path / "r", f"tokenizer.weights={absent}")
    assert code == 3
    assert said.startswith(f"error: no weights at {absent}; give")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")
def test_hardware_that_is_not_there(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", str(folder / "judge.yaml"), "--out", str(tmp_path / "r"), "--device", "cuda"])
    assert code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: hardware: cannot have 1 x cuda, auto, 32-true here: ")


def test_ctrl_c_while_measuring_keeps_what_is_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = table._measure

    def stop_at_the_teacher(row: table.Row, *rest: object) -> object:
        if row.name == "teacher":
            raise KeyboardInterrupt
        return measure(row, *rest)  # type: ignore[arg-type]

    command = ("run", folder / "whole.yaml", "--out", tmp_path / "r")
    with monkeypatch.context() as patch:
        patch.setattr(table, "_measure", stop_at_the_teacher)
        code, said = cli(capsys, *command)
    assert code == 130
    assert "keeps what is done. Run the same command with --resume to go on" in said
    monkeypatch.setattr(
        table,
        "_measure",
        lambda row, *rest: measure(row, *rest) if not row.name.startswith("real") else pytest.fail("again"),
    )
    assert cli(capsys, *command, "--resume")[0] == 0
    assert len(json.loads((tmp_path / "r" / "eval.json").read_text(encoding="utf-8"))["rows"]) == 5


def test_a_broken_data_package(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "package_file", lambda *a: b"\x1f\x8b\x08 not gzip")
    code, said = cli(capsys, "run", folder / "judge.yaml", "--out", tmp_path / "r")
    assert code == 3
    assert said.startswith("error: digits.csv.gz is damaged")


def test_a_training_that_explodes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ("train.player.optimizer.lr=1e30", "train.player.clip=null", "train.iterations=20")
    code, said = cli(capsys, "run", folder / "judge.yaml", "--out", tmp_path / "r", *wild)
    assert code == 4
    assert "at iteration" in said
    assert "no checkpoint was written yet" in said
    assert not (tmp_path / "r" / PRODUCT).exists()
