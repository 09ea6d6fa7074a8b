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
    """The `softdimo` commands of a block: environments are not made again, `run` is made tiny."""
    out = []
    for line in block.strip().splitlines():
        for command in re.split(r"&&|\n", line.split("  #")[0]):
            words = command.strip().removeprefix(".venv/bin/").split()
            if words and words[0] == "softdimo":
                out.append(words[1:] + (["--smoke"] if words[1] == "run" else []))
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


def test_readme_blocks_run_in_order(place: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(place / "plugin")}
    for kind, block in blocks():
        named = re.match(r"# (\S+\.\w+)\n", block)
        if kind == "sh":
            for words in shell(block):
                done = subprocess.run(
                    [sys.executable, "-m", "softdimo", *words], cwd=place, env=environment, capture_output=True,
                    text=True, check=False,
                )  # fmt: skip
                assert done.returncode == 0, f"softdimo {' '.join(words)}\n{done.stdout}{done.stderr}"
                smoked = place / "runs" / (Path(words[1]).stem + "-smoke") if words[0] == "run" else None
                if smoked is not None and smoked.is_dir():
                    target = place / "runs" / Path(words[1]).stem
                    if not target.exists():
                        target.symlink_to(smoked)
        elif named:
            target = place / named.group(1)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block, encoding="utf-8")
        elif kind == "python":
            done = subprocess.run(
                [sys.executable, "-c", block], cwd=place, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
