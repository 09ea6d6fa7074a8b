from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import distribution
from tests.recipe.toy import ENTRIES, STUDENT


@pytest.fixture(scope="package", autouse=True)
def toy_components(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The toy components, installed while the tests of this folder run."""
    folder = distribution(tmp_path_factory.mktemp("toy"), "toy", ENTRIES)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid recipe in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(STUDENT)
    return Path("toy.yaml")
