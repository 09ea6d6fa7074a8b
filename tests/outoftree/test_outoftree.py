"""A distribution from outside is installed and used by name, with nothing in softdimo changed for it."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RECIPE = f"""\
base: {HERE.parents[1] / "recipes/digits_dimo.yaml"}
title: Out of tree
train:
  terms:
    - use: dimo
    - use: bag_gan
      weight: {{ratio: 0.1}}
      hidden: 8
    - use: reward
      rewards: [{{reward: {{use: symmetry, scale: 2}}}}]
eval: null
search: null
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """Environment of a process that has the distribution, built and installed by pip without a network."""
    source, target = tmp_path_factory.mktemp("source") / "dist", tmp_path_factory.mktemp("site")
    shutil.copytree(HERE, source, ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    if importlib.util.find_spec("hatchling") is None:
        text = (source / "pyproject.toml").read_text()
        text = text[: text.index("[tool.hatch")] + '[tool.setuptools]\npackages = ["softdimo_symmetry"]\n'
        text = text.replace('"hatchling>=1.24"', '"setuptools"').replace("hatchling.build", "setuptools.build_meta")
        (source / "pyproject.toml").write_text(text)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    paths = [str(target), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def softdimo(installed: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "softdimo.cli.main", *arguments]
    return subprocess.run(command, env=installed, cwd=folder, capture_output=True, text=True, timeout=300)


def test_it_is_listed_and_healthy(installed, tmp_path):
    listed = softdimo(installed, tmp_path, "plugins", "list")
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert ["loss", "bag_gan", "softdimo-symmetry", "0.3.0"] in rows
    assert ["reward", "symmetry", "softdimo-symmetry", "0.3.0"] in rows
    for kind in ("reward", "loss"):
        assert softdimo(installed, tmp_path, "plugins", "doctor", kind).returncode == 0


def test_it_keeps_the_contract(installed, tmp_path):
    code = (
        "from softdimo import registry, testing\n"
        "here = testing.context()\n"
        "testing.check_reward(registry.find('reward', 'symmetry')().build(here))\n"
        "testing.check_loss(registry.find('loss', 'softdimo-symmetry:bag_gan')().build(here), here)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=installed, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_its_faults_are_located(installed, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.replace("hidden: 8", "hiden: 8").replace("scale: 2", "scale: two"))
    done = softdimo(installed, tmp_path, "run", "r.yaml")
    assert done.returncode == 2
    assert "r.yaml:8:7 train.terms.1.hiden: unknown key; did you mean `hidden`?" in done.stderr
    assert "r.yaml:10:49 train.terms.2.rewards.0.reward.scale: must be a number, not the text `two`" in done.stderr


def test_it_trains(installed, tmp_path):
    """Both are used in a run of two iterations; the critic is trained and saved, the distribution is recorded."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    done = softdimo(installed, tmp_path, "run", "r.yaml", "--smoke", "--device", "cpu", "--out", "run")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run/log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {"bag_gan", "reward"} <= {part for column in rows[-1] for part in column.split("/")}
    scores = [float(value) for name, value in rows[-1].items() if name.startswith("bag_gan/")]
    assert scores
    assert all(math.isfinite(score) for score in scores)
    assert (tmp_path / "run/critics/bag_gan.safetensors").is_file()
    assert json.loads((tmp_path / "run/lock.json").read_text())["distributions"]["softdimo-symmetry"] == "0.3.0"
