from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import toy_components as toy_components
from tests.recipe.toy import STUDENT


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid recipe in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(STUDENT)
    return Path("toy.yaml")
