"""Programs that score images, written for the tests: each logs that it was called, and with how many images."""

import json
import sys
from pathlib import Path

HEAD = """
import hashlib, json, sys, time
from pathlib import Path
asked = json.loads(Path(sys.argv[-2]).read_text())
answer, images = Path(sys.argv[-1]), asked["images"]
folder = Path(asked["folder"])
log = Path(__file__).with_suffix(".log")
files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) if images else []
with log.open("a") as file:
    file.write(json.dumps({"images": images, "files": files}) + "\\n")
told = {"provenance": {"scorer": "mine", "version": 3}}

def score(image):
    sha = hashlib.sha256((folder / image["file"]).read_bytes() + (image["prompt"] or "").encode())
    return sha.digest()[0] / 255
"""
TAIL = """
answer.write_text(json.dumps(told))
"""
SET = """
if images:
    told["numbers"] = {"mine": sum(map(score, images)) / len(images)}
"""
EACH = """
told["images"] = {image["file"]: {"mine": score(image)} for image in images}
"""
GENEVAL = """
import os
if images:  # as the official script does: by the folders alone, in no order
    lines = []
    for sub in os.listdir(folder):
        if (folder / sub).is_dir() and sub.isdigit():
            metadata = json.loads((folder / sub / "metadata.jsonl").read_text())
            for name in os.listdir(folder / sub / "samples"):
                path = f"{folder}/{sub}/samples/{name}"
                right = score({"file": f"{sub}/samples/{name}", "prompt": metadata["prompt"]}) > 0.5
                lines.append({"filename": path, "tag": metadata["tag"], "prompt": metadata["prompt"], "correct": right,
                              "reason": "", "metadata": json.dumps(metadata), "details": "{}"})
    Path(asked["results"]).write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


def write(folder: Path, body: str = SET, name: str = "scorer.py") -> list[str]:
    """A program with this body; the command that runs it."""
    (folder / name).write_text(HEAD + body + TAIL)
    return [sys.executable, "-S", str(folder / name)]


def calls(folder: Path, name: str = "scorer.log") -> list[dict]:
    """What it was asked, without the questions after its provenance."""
    path = folder / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [call for line in lines if (call := json.loads(line))["images"]]
