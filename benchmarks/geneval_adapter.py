"""GenEval's own scorer as the command of the metric `geneval`. Runs in the scorer's environment, not in softdimo's.

    command: [conda, run, -n, geneval, python, ./geneval_adapter.py, --geneval, ../geneval, --model-path, ../detector]

The environment is that of https://github.com/djghosh13/geneval: its environment.yml, mmdetection 2.x, and a GPU.
`--geneval` is a clone of that repository, `--model-path` the folder that its download_models.sh puts the detector into.
What follows is added by softdimo: the request and the answer (softdimo_plugins/metrics/program.py). Python 3.8 will do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

SCRIPT = "evaluation/evaluate_images.py"
DETECTOR = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
"""The script's own default."""
PACKAGES = ("mmdet", "mmcv-full", "mmcv", "open_clip_torch", "clip-benchmark", "torch", "numpy", "pandas", "pillow")


def provenance(script: Path, detector: Path, options: list[str]) -> dict[str, str]:
    """Versions and hashes that the scores rest on."""
    found = {"python": sys.version.split()[0], "script": sha256(script), "detector": sha256(detector)}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["options"] = " ".join(options)
    return found


def sha256(path: Path) -> str:
    """Hash of a file, a piece at a time."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            sha.update(piece)
    return sha.hexdigest()


def main() -> None:
    """Say what scores rest on, and where there are images, let the script score them."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--geneval", type=Path, required=True, help="a clone of the scorer's repository")
    ask.add_argument("--model-path", type=Path, required=True, help=f"the folder of {DETECTOR}.pth")
    ask.add_argument("--model-config", type=Path, help="the detector's configuration; mmdet's own by default")
    ask.add_argument("--option", action="append", default=[], help="of the script, key=value; papers give none")
    ask.add_argument("request", type=Path)
    ask.add_argument("answer", type=Path)
    asked = ask.parse_args()
    script, detector = asked.geneval / SCRIPT, asked.model_path / f"{DETECTOR}.pth"
    for path in (script, detector):
        if not path.is_file():
            sys.exit(f"there is no {path}; see the README of https://github.com/djghosh13/geneval")
    request = json.loads(asked.request.read_text(encoding="utf-8"))
    if request["images"]:
        command = [sys.executable, str(script), request["folder"], "--outfile", request["results"]]
        command += ["--model-path", str(asked.model_path)]
        if asked.model_config:
            command += ["--model-config", str(asked.model_config)]
        if asked.option:
            command += ["--options", *asked.option]
        done = subprocess.run(command)
        if done.returncode:
            sys.exit(done.returncode)
    answer = {"provenance": provenance(script, detector, asked.option)}
    asked.answer.write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
