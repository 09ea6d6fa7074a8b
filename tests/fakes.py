"""Distributions made of nothing but metadata and modules, for tests of the registry and of recipes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


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
