"""`softdimo new`: the package's own contract test passes as it is written, and it installs."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest

from softdimo import API_VERSION
from softdimo.errors import PluginError
from softdimo.scaffold import scaffold


@pytest.mark.parametrize("kind", ["reward", "loss", "teacher"])
def test_the_contract_test_passes_out_of_the_box(kind, tmp_path):
    folder = scaffold(kind, f"my_{kind}", tmp_path / "package")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == f"softdimo-my-{kind}"
    entry = project["project"]["entry-points"][f"softdimo.{kind}"]
    assert entry == {f"my_{kind}": f"softdimo_my_{kind}.{kind}:My{kind.capitalize()}"}
    assert project["project"]["entry-points"]["softdimo.api"] == {str(API_VERSION): f"softdimo_my_{kind}"}
    assert f"my_{kind}" in (folder / "README.md").read_text()
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("kind", ["reward", "loss", "teacher"])
def test_what_is_written_is_tidy(kind, tmp_path):
    folder = scaffold(kind, "tidy", tmp_path / "package")
    for arguments in (
        ["check", "--select", "E,F,I,W,UP,B", "."],
        ["check", "--select", "D1", "--ignore", "D105,D107", "softdimo_tidy"],
        ["format", "--check", "."],
    ):
        command = [sys.executable, "-m", "ruff", *arguments, "--line-length", "120", "--isolated", "--no-cache"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["", "My", "a-b", "1a", "a b", "class", "é", "../x", "a/b", "a\n"])
def test_names_that_cannot_be(name, tmp_path):
    with pytest.raises(PluginError, match="cannot be a component's name"):
        scaffold("reward", name, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_names_and_folders_that_are_taken(tmp_path):
    with pytest.raises(PluginError, match="softdimo has a loss called `gan` already"):
        scaffold("loss", "gan", tmp_path / "x")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/file").write_text("mine")
    with pytest.raises(PluginError, match="is not empty"):
        scaffold("loss", "mine", tmp_path / "x")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["file"]
    with pytest.raises(PluginError, match="cannot write"):
        scaffold("loss", "mine", tmp_path / "x/file/y")
    with pytest.raises(PluginError, match="writes reward, loss, teacher, not `sampler`"):
        scaffold("sampler", "mine", tmp_path / "y")
