"""Recipes on a folder of tiny pictures, and finished runs of them that were never trained: their results are fresh."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from softdimo import recipe as recipes
from softdimo.build import PRODUCT, Components
from softdimo.files import save_weights
from softdimo.folder import RunFolder
from softdimo.lineage import cache_name, training_hash
from softdimo.recipe import Loaded

TOKENIZER = """
title: Tiny tokenizer
data: {use: folder, path: pictures, size: 8, channels: 1, held_out: 0.5}
tokenizer: {use: conv_vq, patch: 4, codebook: 7, width: 4}
train: {network: tokenizer, iterations: 5, batch_size: 4}
"""
TEACHER = """
title: Tiny teacher
data: {use: folder, path: pictures, size: 8, channels: 1, held_out: 0.5}
tokenizer: {use: conv_vq, patch: 4, codebook: 7, width: 4, weights: {recipe: tokenizer.yaml}}
teacher: {use: compact, width: 8, depth: 1, heads: 2}
train:
  network: teacher
  iterations: 6
  batch_size: 4
  sampler: {use: random_order, steps: 3}
"""
STUDENT = """
title: Tiny student
data: {use: folder, path: pictures, size: 8, channels: 1, held_out: 0.5}
tokenizer: {use: conv_vq, patch: 4, codebook: 7, width: 4, weights: {recipe: tokenizer.yaml}}
teacher: {use: compact, width: 8, depth: 1, heads: 2, weights: {recipe: teacher.yaml}}
train:
  iterations: 7
  batch_size: 4
  terms:
    - {use: dimo, guidance: {scale: 2}}
    - {use: gan, weight: {ratio: 0.3}, discriminator: {use: teacher_features, hidden: 8}}
"""


def write_recipes(root: Path) -> Path:
    """`tokenizer.yaml`, `teacher.yaml`, `student.yaml` and two classes of pictures; returns the folder."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / name / f"{i}.png")
    for name, text in (("tokenizer", TOKENIZER), ("teacher", TEACHER), ("student", STUDENT)):
        (root / f"{name}.yaml").write_text(text)
    return root


def finish(loaded: Loaded, folder: Path, seed: int) -> Path:
    """Write a run folder as `softdimo run` does, with fresh weights of another seed as the result."""
    held = RunFolder(folder)
    folder.mkdir(parents=True)
    held.describe(recipes.dump(loaded.recipe), training_hash(loaded), recipes.distributions(loaded.recipe))
    assert loaded.recipe.train is not None
    network = loaded.recipe.train.network
    spec = getattr(loaded.recipe, "teacher" if network == "student" else network)
    net = Components(loaded.recipe.model_copy(update={"seed": seed})).fresh(spec)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    save_weights(folder / PRODUCT, net.state_dict())
    return folder


def finished(root: Path, smoke: bool = False) -> Path:
    """A finished run of `student.yaml` in `root/runs/student`, with the cached runs that it rests on."""
    home = write_recipes(root)
    for seed, name in enumerate(("tokenizer", "teacher", "student")):
        loaded = recipes.load(home / f"{name}.yaml", smoke=smoke)
        place = root / "runs" / ("student" if name == "student" else f"cache/{cache_name(loaded)}")
        finish(loaded, place, seed + 11)
    return root / "runs" / "student"
