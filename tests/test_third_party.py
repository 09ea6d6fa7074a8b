"""A reward that `softdimo new` made, in an environment of its own: installed, listed, used, broken on purpose."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from softdimo.cli.scaffold import scaffold

ROOT = Path(__file__).parents[1]
RECIPE = f"""\
base: {ROOT / "recipes/digits_dimo.yaml"}
title: Theirs
train:
  terms:
    - use: dimo
    - use: reward
      rewards: [{{reward: {{use: their_reward}}}}]
eval: null
search: null
"""


class Place(NamedTuple):
    """An environment and the package that is installed in it."""

    python: Path
    source: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """A fresh environment, softdimo's dependencies seen from this one, the package installed as its README says."""
    folder = tmp_path_factory.mktemp("third")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")}))
    (site / "seen.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    source = scaffold("reward", "their_reward", folder / "package")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--disable-pip-version-check", "--no-build-isolation", "-e", str(source)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return Place(python, source)


def softdimo(place: Place, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(place.python), "-m", "softdimo", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=settings, timeout=600)


@pytest.fixture
def code(place) -> Iterator[Path]:
    """Its module, as it was again after the test."""
    path = place.source / "softdimo_their_reward" / "reward.py"
    whole = path.read_text()
    yield path
    path.write_text(whole)


def test_it_is_listed(place, tmp_path):
    done = softdimo(place, "plugins", "list", "reward", cwd=tmp_path)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["reward", "their_reward", "softdimo-their-reward", "0.1.0"] in rows


def test_a_recipe_uses_it_by_name(place, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    done = softdimo(place, "run", "r.yaml", "--smoke", "--device", "cpu", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    heads, *lines = csv.reader((tmp_path / "run" / "log.csv").read_text().splitlines())
    scores = [float(line[heads.index("reward/their_reward")]) for line in lines]
    assert scores
    assert all(0 < score < 1 for score in scores)
    lock = json.loads((tmp_path / "run" / "lock.json").read_text())
    assert lock["distributions"]["softdimo-their-reward"] == "0.1.0"


def test_one_that_cannot_be_imported_stops_only_its_users(place, code, tmp_path):
    code.write_text("import a_package_that_is_not_there\n" + code.read_text())
    (tmp_path / "r.yaml").write_text(RECIPE)
    done = softdimo(place, "check", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "softdimo-their-reward" in done.stderr
    assert "a_package_that_is_not_there" in done.stderr
    assert softdimo(place, "check", str(ROOT / "recipes" / "digits_dimo.yaml"), cwd=tmp_path).returncode == 0
    rows = [line.split() for line in softdimo(place, "plugins", "list", "reward", cwd=tmp_path).stdout.splitlines()]
    assert any(row[:2] == ["reward", "their_reward"] for row in rows)
    assert any(row[:2] == ["reward", "class_log_prob"] for row in rows)


def test_one_that_breaks_its_promise_is_named_when_it_runs(place, code, tmp_path):
    """One number for all images: the run ends at the first of them, and says whose fault it is."""
    code.write_text(code.read_text().replace("img.mean((1, 2, 3))", "img.mean()"))
    (tmp_path / "r.yaml").write_text(RECIPE)
    done = softdimo(place, "run", "r.yaml", "--smoke", "--device", "cpu", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    told = done.stderr[done.stderr.index("error: ") :]
    assert "Traceback" not in told
    assert "the reward TheirReward gives [] for " in told
    assert "give one number each" in told


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ("img.mean()", "one number per image"),
        ("(img - img.mean()).square().mean((1, 2, 3))", "other samples"),
        ("img.detach().mean((1, 2, 3))", "its graph is cut"),
    ],
    ids=["one number for all", "mixes samples", "no gradient"],
)
def test_its_own_test_finds_what_breaks_the_contract(place, code, score, told):
    code.write_text(code.read_text().replace("img.mean((1, 2, 3))", score))
    command = [str(place.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=place.source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    (why,) = [line for line in done.stdout.splitlines() if line.startswith("E ") and "AssertionError" in line]
    assert told in why
