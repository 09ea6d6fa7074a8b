"""Distributions made of nothing but metadata and modules, for tests of the registry and of recipes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.recipe.toy import ENTRIES


def distribution(
    folder: Path,
    name: str,
    entries: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str] | None = None,
    version: str = "1.0",
    extras: tuple[str, ...] = (),
) -> Path:
    """Write an installed distribution into `folder`: entry points by group, and the sources of its modules."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Provides-Extra: {x}" for x in extras)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "entry_points.txt").write_text(
        "\n".join(
            f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in entries.items()
        )
    )
    for module, source in (modules or {}).items():
        (folder / f"{module}.py").write_text(source)
    return folder


@pytest.fixture(scope="package", autouse=True)
def toy_components(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The toy components, installed while the tests of a folder run, whose conftest imports this."""
    folder = distribution(tmp_path_factory.mktemp("toy"), "toy", ENTRIES)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
