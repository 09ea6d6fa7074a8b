"""Every recipe that ships is valid, explains itself, and runs when it is tiny."""

import html
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softdimo import recipe, run

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SMOKED = [p for folder in ("", "reference") for p in sorted((ROOT / "recipes" / folder).glob("*.yaml"))]
ALWAYS = ("animals_softdimo", "animals_bits_softdimo", "folder_softdimo")
"""Tiny versions that the default tests run; the others are `slow`."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs, shared, so that what recipes need from each other is made once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of pictures: two classes, colored disks and squares."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40]
    for name, inside in (
        ("disk", (x - 20) ** 2 + (y - 20) ** 2 < 150),
        ("square", (abs(x - 20) < 9) & (abs(y - 20) < 9)),
    ):
        (folder / name).mkdir()
        for i in range(40):
            color = rng.integers(80, 255, 3)
            pixels = np.where(inside[..., None], color, 255 - color).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of prompts."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("".join(f"a {color} {thing}\n" for color in ("red", "blue") for thing in ("cube", "ball", "cat")))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT / "recipes")))
def test_valid(path: Path) -> None:
    loaded = recipe.load(path)
    assert loaded.recipe.title
    assert recipe.load(path, smoke=True).recipe != loaded.recipe


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem in ALWAYS else pytest.mark.slow, id=p.stem) for p in SMOKED],
)
def test_smoke(path: Path, runs: Path, images: Path, prompts: Path) -> None:
    files = {"folder": images, "prompts": prompts}
    use = recipe.load(path).recipe.data.use
    overrides = [f"data.path={files[use]}"] if use in files else []
    loaded = recipe.load(path, overrides, smoke=True)
    folder = run.run(loaded, runs / path.stem, say=lambda text: None)
    page = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    assert loaded.recipe.title.split(" - ")[0].split("[")[0] in page
    if loaded.recipe.train is not None:
        assert (folder / "weights.safetensors").is_file()
        assert list((folder / "samples").glob("*.png")) or loaded.recipe.train.network == "features"
    if loaded.recipe.eval is not None:
        rows = json.loads((folder / "eval.json").read_text(encoding="utf-8"))["rows"]
        planned = [each for row in loaded.recipe.eval.rows for each in row.swept()]
        assert {r.name for r in planned if r.of != "real"} <= {r["name"] for r in rows}
        if loaded.recipe.data.use not in ("labels", "tokens"):  # which have no images
            assert any(r["name"].endswith("held out") for r in rows)
    if loaded.recipe.search is not None:
        assert len(json.loads((folder / "search.json").read_text(encoding="utf-8"))["methods"]) >= 3


@pytest.mark.parametrize("name", ["maskgit", "maskbit", "halton"])
def test_tiny_versions_of_public_networks_have_their_sizes_but_their_depth(name: str) -> None:
    path = ROOT / "recipes" / f"{name}_dimo.yaml"
    full, small = (recipe.load(path, smoke=smoke).recipe for smoke in (False, True))
    fresh = {"weights": None, "fresh": True}
    assert small.teacher == full.teacher.model_copy(update={"depth": 2} | fresh)  # type: ignore[union-attr]
    assert small.tokenizer == full.tokenizer.model_copy(update={"blocks": 1} | fresh)  # type: ignore[union-attr]
    for metric, public in zip(small.eval.metrics, full.eval.metrics, strict=True):  # type: ignore[union-attr]
        assert metric.features == public.features.model_copy(update=fresh)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["released", "continued"])
def test_the_tiny_version_needs_no_public_student(name: str) -> None:
    small = recipe.load(ROOT / "recipes" / "reference" / f"maskgit_dimo_{name}.yaml", smoke=True).recipe
    assert small.eval is not None
    assert [row.weights for row in small.eval.rows] == [None] * len(small.eval.rows)
    assert small.train is None or small.train.start.from_ is None


def test_results_in_documents_are_current() -> None:
    """The numbers of README.md and benchmarks/README.md are those of benchmarks/results."""
    command = [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
