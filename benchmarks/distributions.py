"""The distributions beside softdimo: do their install lines resolve, and do their tests pass where they are installed?

    python benchmarks/distributions.py                    # the lines of plugins/README.md, by `pip install --dry-run`
    python benchmarks/distributions.py imagereward hpsv2  # environments of their own, and the tests in them
    ... --full                                            # networks of their full size too: 8 GB of memory, minutes

Environments are made by `python -m venv` and plain pip in a temporary folder (6 GB each, most of it torch) and deleted
afterwards. Writes results/distributions.json.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provenance import RESULTS, write_result

ROOT = Path(__file__).parent.parent
LINES = {
    "imagereward": (". ./plugins/imagereward", ("pytest>=8",)),
    "hpsv2": ('".[rewards]" ./plugins/hpsv2', ()),
}
"""Distribution -> the line of plugins/README.md that is installed for its tests, and what the tests need besides."""
SHOWN = (
    "torch", "torchvision", "transformers", "timm", "open-clip-torch", "huggingface-hub", "image-reward", "hpsv2x",
    "protobuf", "pytest", "setuptools",
)  # fmt: skip
REFUSED = re.compile(r"ResolutionImpossible|conflicting dependencies")


def documented(kind: str, readme: str) -> list[str]:
    """What the install lines of one kind (`resolves`, `conflicts`) of plugins/README.md ask for."""
    block = re.search(rf"<!-- {kind} -->\n```sh\n(.*?)```", readme, re.S)
    if block is None:
        raise SystemExit(f"plugins/README.md has no block of lines that are said to be: {kind}")
    lines = block[1].strip().splitlines()
    return [line.removeprefix("pip install ") for line in lines]


def environment(folder: Path) -> Path:
    """The interpreter of a new environment."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


def resolve(python: Path, wanted: str, folder: Path) -> dict[str, Any]:
    """What pip would install for a line, or that it refuses. Any other failure ends the program."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--report", str(report)]
    done = subprocess.run([*command, *shlex.split(wanted)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        if not REFUSED.search(done.stderr):
            raise SystemExit(f"pip install {wanted}: {done.stderr.strip()[-2000:]}")
        return {"resolves": False}
    found = {
        _name(item["metadata"]["name"]): item["metadata"]["version"]
        for item in json.loads(report.read_text())["install"]
    }
    return {"resolves": True, "versions": {name: found[name] for name in SHOWN if name in found}}


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lines(folder: Path) -> dict[str, Any]:
    """Every documented line; ends the program where one does not do what is said of it."""
    readme = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    python, out = environment(folder / "resolver"), {}
    for kind, expected in (("resolves", True), ("conflicts", False)):
        for wanted in documented(kind, readme):
            out[wanted] = found = resolve(python, wanted, folder)
            print(f"pip install {wanted}: {found.get('versions', 'refused')}", flush=True)
            if found["resolves"] is not expected:
                raise SystemExit(f"plugins/README.md says of `pip install {wanted}`: {kind}")
    return out


def test(name: str, folder: Path, full: bool) -> dict[str, Any]:
    """Install a distribution into an environment of its own and run its tests there."""
    wanted, besides = LINES[name]
    python = environment(folder / name)
    pip = [str(python), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", *shlex.split(wanted), *besides], cwd=ROOT, check=True)
    subprocess.run([*pip, "check"], check=True)
    home = ROOT / "plugins" / name
    command = [str(python), "-m", "pytest", "-s", "-p", "no:cacheprovider", "--basetemp", str(folder / "tests")]
    done = subprocess.run(
        [*command, "-m", "" if full else "not slow"], cwd=home, stdout=subprocess.PIPE, text=True, check=False
    )
    print(done.stdout, flush=True)
    if done.returncode:
        raise SystemExit(f"the tests of plugins/{name} fail")
    listed = json.loads(subprocess.check_output([*pip, "list", "--format", "json"], text=True))
    found = {_name(item["name"]): item["version"] for item in listed}
    return {
        "installed": wanted,
        "versions": {key: found[key] for key in SHOWN if key in found},
        "agreement": re.findall(r"(?:tiny|full) .*: scores differ by .*", done.stdout),
        "passed": int((re.search(r"(\d+) passed", done.stdout) or ["", "0"])[1]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, do what it asks for, and write down what came of it beside what is known already."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"distributions to install and test: {', '.join(LINES)}")
    parser.add_argument("--full", action="store_true", help="networks of their full size too")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(LINES):
        parser.error(f"there is no distribution {', '.join(sorted(unknown))}; there are {', '.join(LINES)}")
    file = RESULTS / "distributions.json"
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        if not asked.names:
            result["lines"] = lines(Path(folder))
        for name in asked.names:
            result[name] = test(name, Path(folder), asked.full)
    result["python"] = sys.version.split()[0]
    print(write_result("distributions", result))


if __name__ == "__main__":
    main()
