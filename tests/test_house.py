"""The rules of the house: who may import whom, what stands at the top level, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"softdimo": ROOT / "softdimo", "softdimo_plugins": ROOT / "plugins/softdimo_plugins"}
TOP = {"pyproject.toml", "README.md", "LICENSE", "softdimo", "plugins", "recipes", "benchmarks", "tests"}
FOR_PLUGINS = ("spec", "shapes", "kinds", "errors", "inputs.cursor", "inputs.shards", "math", "weights")
LINES = 350


def modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    out = {}
    for name, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            out[".".join([name, *(p for p in parts if p != "__init__")])] = path
    return out


MODULES = modules()


def _typing_only(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _names(node: ast.stmt, module: str) -> Iterator[str]:
    """Modules of ours that an import statement loads (`from package import module` loads that module too)."""
    if isinstance(node, ast.Import):
        found = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            is_package = MODULES[module].name == "__init__.py"
            above = module.split(".")[: len(module.split(".")) - node.level + is_package]
            base = ".".join([*above, *filter(None, [base])])
        found = [base, *(f"{base}.{alias.name}" for alias in node.names)]
    else:
        return
    yield from (name for name in found if name in MODULES)


def imports(module: str, everywhere: bool) -> set[str]:
    """Modules of ours that a module imports: when it is loaded, or `everywhere` (in functions and for typing too)."""

    def visit(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            yield from _names(node, module)
            if isinstance(node, ast.If) and _typing_only(node.test):
                yield from visit(node.orelse)
            elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
                for part in ("body", "orelse", "finalbody"):
                    yield from visit(getattr(node, part, []))
                for handler in getattr(node, "handlers", []):
                    yield from visit(handler.body)

    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    if everywhere:
        return {name for node in ast.walk(tree) if isinstance(node, ast.stmt) for name in _names(node, module)}
    return set(visit(tree.body))


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_core_never_imports_the_plugins():
    found = {
        (module, name)
        for module in MODULES
        if within(module, "softdimo")
        for name in imports(module, everywhere=True)
        if within(name, "softdimo_plugins")
    }
    assert not found


def test_plugins_import_the_interface_and_the_mathematics_only():
    allowed = [f"softdimo.{name}" for name in FOR_PLUGINS]
    found = {
        (module, name)
        for module in MODULES
        if within(module, "softdimo_plugins")
        for name in imports(module, everywhere=True)
        if within(name, "softdimo") and name != "softdimo" and not within(name, *allowed)
    }
    assert not found


def test_the_mathematics_knows_no_engine_no_recipe_and_no_registry():
    allowed = ("softdimo.math", "softdimo.spec", "softdimo.shapes", "softdimo.errors")
    math = [module for module in MODULES if within(module, "softdimo.math")]
    assert math
    loaded = {(m, n) for m in math for n in imports(m, everywhere=False) if n != "softdimo" and not within(n, *allowed)}
    assert not loaded
    for_typing = {
        (m, n)
        for m in math
        for n in imports(m, everywhere=True)
        if n != "softdimo" and not within(n, *allowed, "softdimo.kinds")
    }
    assert not for_typing


def test_no_cycles():
    """No module reaches itself through imports that run when it is loaded."""
    graph = {module: imports(module, everywhere=False) - {module} for module in MODULES}
    for module in MODULES:  # loading a module loads its packages first, unless they are being loaded already
        graph[module] = {n for n in graph[module] if not module.startswith(f"{n}.")}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_the_check_of_imports_sees_what_it_should(tmp_path, monkeypatch):
    file = tmp_path / "probe.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nfrom .math import soft\nimport softdimo.kinds as k\n"
        "if TYPE_CHECKING:\n    from softdimo import spec\nelse:\n    import softdimo.errors\n"
        "try:\n    pass\nexcept ImportError:\n    from softdimo.math.init import Init\n"
        "def f():\n    from softdimo.registry import find\n"
    )
    monkeypatch.setitem(MODULES, "softdimo.probe", file)
    seen = {"softdimo.math", "softdimo.math.soft", "softdimo.kinds", "softdimo.errors", "softdimo.math.init"}
    assert imports("softdimo.probe", everywhere=False) == seen
    assert imports("softdimo.probe", everywhere=True) == seen | {"softdimo", "softdimo.spec", "softdimo.registry"}


def files() -> list[Path]:
    """Files of the project, relative to its root: what git tracks, or everything in an unpacked archive."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout:
        return [Path(line) for line in done.stdout.splitlines() if (ROOT / line).exists()]
    return [p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def test_the_top_level_is_exactly_this():
    assert {path.parts[0] for path in files() if not path.parts[0].startswith(".")} == TOP


def test_recipes_are_yaml_only():
    """And what explains the reference recipes."""
    assert {p for p in files() if p.parts[0] == "recipes" and p.suffix != ".yaml"} == {
        Path("recipes/reference/README.md")
    }


@pytest.mark.parametrize("path", [p for p in files() if p.suffix == ".py"], ids=str)
def test_files_are_short(path):
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines < LINES, f"{path} has {lines} lines"
