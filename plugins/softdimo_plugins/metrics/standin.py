"""Stands in for a program that scores images, in trials: `python -m softdimo_plugins.metrics.standin REQUEST ANSWER`.

It measures brightness, keeps to the contract of `program`, and writes what GenEval's script writes where the request
asks for that: an image is called right when its bytes have an even sum. Its numbers mean nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def main(request: str, answer: str) -> None:
    """Answer a request."""
    asked: dict[str, Any] = json.loads(Path(request).read_text(encoding="utf-8"))
    folder = Path(asked["folder"])
    sums = {image["file"]: _sum(folder / image["file"]) for image in asked["images"]}
    brightness = {file: total / size for file, (total, size) in sums.items()}
    told: dict[str, Any] = {"provenance": {"scorer": "stand-in", "version": 1}}
    if brightness:
        told["numbers"] = {"brightness": sum(brightness.values()) / len(brightness)}
        told["images"] = {file: {"brightness": value} for file, value in brightness.items()}
    if "results" in asked:
        lines = [
            {"filename": str(folder / image["file"]), "tag": image["metadata"]["tag"], "prompt": image["prompt"]}
            | {"correct": sums[image["file"]][0] % 2 == 0, "reason": ""}
            for image in asked["images"]
        ]
        Path(asked["results"]).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    Path(answer).write_text(json.dumps(told), encoding="utf-8")


def _sum(file: Path) -> tuple[int, int]:
    """Sum of the bytes, and what it would be were all of them white."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    return int(pixels.sum()), 255 * pixels.size


if __name__ == "__main__":
    main(*sys.argv[1:])
