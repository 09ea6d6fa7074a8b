"""Every code block of the README runs: shell blocks without their set-up and with recipes made tiny."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def shell(block: str) -> list[list[str]]:
    """The commands of a block: environments are not made again, `run` and `search` are made tiny."""
    out = []
    for line in block.strip().splitlines():
        for command in line.split("  #")[0].split("&&"):
            words = command.strip().removeprefix(".venv/bin/").split()
            if words[:1] == ["softdimo"]:
                out.append([sys.executable, "-m", *words, *(["--smoke"] if words[1] in ("run", "search") else [])])
            elif words[:3] == ["pip", "install", "-e"]:
                install = [
                    "pip",
                    "install",
                    "-q",
                    "--no-deps",
                    "--no-build-isolation",
                    "--target",
                    "site",
                    f"./{words[3]}",
                ]
                out.append([sys.executable, "-m", *install])
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes, as a clone has them."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


def test_every_block_is_of_a_known_kind() -> None:
    assert {kind for kind, _ in blocks()} <= {"sh", "python", "yaml", "toml", "text"}
    assert sum(kind == "sh" for kind, _ in blocks()) >= 3


def execute(command: list[str], place: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(place / "site")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def test_readme_blocks_run_in_order(place: Path) -> None:
    for kind, block in blocks():
        named = re.match(r"# (\S+\.\w+)\n", block)
        if kind == "sh":
            for command in shell(block):
                execute(command, place)
                if (
                    command[3] == "run" and "--out" not in command
                ):  # what the next blocks call by the name of the full run
                    stem = Path(command[4]).stem
                    (place / "runs" / stem).symlink_to(place / "runs" / f"{stem}-smoke")
        elif named:
            target = place / named.group(1)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block, encoding="utf-8")
        elif kind == "python":
            execute([sys.executable, "-c", block], place)
