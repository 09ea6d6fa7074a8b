from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from softdimo.errors import RecipeError
from softdimo.recipe import load
from tests.fakes import toy_components as toy_components


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Load a recipe that is wrong, as `recipe.yaml` in the current folder; returns the lines of the error."""
    monkeypatch.chdir(tmp_path)

    def lines(text: str | bytes, *overrides: str, **files: str) -> list[str]:
        for name, content in files.items():
            Path(f"{name}.yaml").write_text(content)
        Path("recipe.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(RecipeError) as caught:
            load("recipe.yaml", overrides)
        assert caught.value.code == 2
        return str(caught.value).splitlines()

    return lines
