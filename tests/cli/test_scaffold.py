"""`softdimo new`: the package passes its contract test as it is written, installs, and does what its README says."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import textwrap
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from softdimo import API_VERSION
from softdimo.cli.scaffold import scaffold
from softdimo.errors import PluginError

KINDS = ("reward", "loss", "teacher", "text_encoder")
RECIPES = Path(__file__).parents[2] / "recipes"
BASES = {
    "reward": "digits_dimo.yaml", "loss": "digits_dimo.yaml", "teacher": "digits_teacher.yaml",
    "text_encoder": "digits_dimo.yaml",
}  # fmt: skip


def run(*command: str, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """Standard output of a command that must succeed."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=settings, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("kind", "name", "cls"),
    [
        ("reward", "my_reward", "MyReward"),
        ("loss", "test_it", "TestIt"),
        ("teacher", "teacher", "TeacherTeacher"),
        ("text_encoder", "text_encoder", "TextEncoderTextEncoder"),
    ],
)
def test_the_contract_test_passes_out_of_the_box(kind, name, cls, tmp_path):
    folder = scaffold(kind, name, tmp_path / "package")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == f"softdimo-{name.replace('_', '-')}"
    assert project["project"]["entry-points"][f"softdimo.{kind}"] == {name: f"softdimo_{name}.{kind}:{cls}"}
    assert project["project"]["entry-points"]["softdimo.api"] == {str(API_VERSION): f"softdimo_{name}"}
    assert f"`{name}`" in (folder / "README.md").read_text()
    out = run(sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(folder), cwd=folder)
    assert "1 passed" in out


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_tidy(kind, tmp_path):
    folder = scaffold(kind, "tidy", tmp_path / "package")
    for arguments in (
        ["check", "--select", "E,F,I,W,UP,B,ANN", "."],
        ["check", "--select", "D1", "--ignore", "D105,D107", "softdimo_tidy"],
        ["format", "--check", "."],
    ):
        run(sys.executable, "-m", "ruff", *arguments, "--line-length", "120", "--isolated", "--no-cache", cwd=folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_types_are_strict(kind, tmp_path, tmp_path_factory):
    folder = scaffold(kind, "typed", tmp_path / "package")
    cache = tmp_path_factory.getbasetemp() / "mypy"
    run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), "softdimo_typed", "tests", cwd=folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_builds_a_wheel_and_does_what_its_readme_says(kind, tmp_path):
    """Its commands, as they stand there, and its recipe; pip installs into a folder of the test, without a network."""
    folder, prefix = scaffold(kind, f"our_{kind}", tmp_path / "package"), tmp_path / "prefix"
    text, usage = (folder / "README.md").read_text().split("In a recipe:")
    commands = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    assert commands == ["pip install -e .", "pytest", f"softdimo plugins doctor {kind}"]
    site = sysconfig.get_path("purelib", vars={"base": str(prefix), "platbase": str(prefix)})
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([site, str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PIP_PREFIX": str(prefix), "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0",
    }  # fmt: skip
    out = [run("bash", "-c", command, cwd=folder, environment=environment) for command in commands]
    assert "1 passed" in out[1]
    assert f"ok      {kind} our_{kind}: " in out[2]
    listed = run("softdimo", "plugins", "list", kind, cwd=tmp_path, environment=environment)
    dist = f"softdimo-our-{kind.replace('_', '-')}"
    assert [kind, f"our_{kind}", dist, "0.1.0"] in [line.split() for line in listed.splitlines()]
    sections = "" if kind == "teacher" else "eval: null\nsearch: null\n"
    (tmp_path / "r.yaml").write_text(f"base: {RECIPES / BASES[kind]}\ntitle: Ours\n{textwrap.dedent(usage)}{sections}")
    run("bash", "-c", "softdimo run r.yaml --smoke --device cpu --out run", cwd=tmp_path, environment=environment)
    assert (tmp_path / "run/weights.safetensors").is_file()
    run("bash", "-c", "pip wheel --quiet --wheel-dir dist .", cwd=folder, environment=environment)
    (wheel,) = (folder / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {f"softdimo_our_{kind}/__init__.py", f"softdimo_our_{kind}/{kind}.py"}


@pytest.mark.parametrize("name", ["", "My", "a-b", "1a", "a b", "class", "é", "../x", "a/b", "a\n"])
def test_names_that_cannot_be(name, tmp_path):
    with pytest.raises(PluginError, match="cannot be a component's name"):
        scaffold("reward", name, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_names_and_folders_that_are_taken(tmp_path):
    with pytest.raises(PluginError, match="softdimo has a loss called `gan` already"):
        scaffold("loss", "gan", tmp_path / "x")
    with pytest.raises(PluginError, match="there is a package softdimo_plugins already"):
        scaffold("loss", "plugins", tmp_path / "x")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/file").write_text("mine")
    with pytest.raises(PluginError, match="is not empty"):
        scaffold("loss", "mine", tmp_path / "x")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["file"]
    with pytest.raises(PluginError, match="cannot write"):
        scaffold("loss", "mine", tmp_path / "x/file/y")
    with pytest.raises(PluginError, match="writes reward, loss, teacher, text_encoder, not `sampler`"):
        scaffold("sampler", "mine", tmp_path / "y")
