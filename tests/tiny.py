"""Recipes that take seconds: digits, a tokenizer of 16 codes, a teacher of 2 blocks, 4 iterations each; and finished
runs of them that were never trained: their results are fresh."""

from __future__ import annotations

from pathlib import Path

import torch

from softdimo import recipe as recipes
from softdimo.build import PRODUCT, Components
from softdimo.files import save_weights
from softdimo.recipe import Loaded
from softdimo.runs.folder import RunFolder
from softdimo.runs.lineage import cache_name, training_hash

TOKENIZER = """\
title: Tiny tokenizer
data: {use: digits}
tokenizer: {use: conv_vq, patch: 2, codebook: 16, width: 4}
train: {network: tokenizer, iterations: 4, batch_size: 8, ema: {half_lives: []}, log_every: 2, sample_every: 4}
"""
TEACHER = """\
title: Tiny teacher
data: {use: digits}
tokenizer: {use: conv_vq, patch: 2, codebook: 16, width: 4, weights: {recipe: tokenizer.yaml}}
teacher: {use: compact, width: 16, depth: 2, heads: 2}
train:
  network: teacher
  iterations: 4
  batch_size: 8
  ema: {half_lives: [5]}
  log_every: 2
  sample_every: 4
  sampler: {use: random_order, steps: 3}
"""
STUDENT = """\
title: Tiny student
data: {use: digits}
tokenizer: {use: conv_vq, patch: 2, codebook: 16, width: 4, weights: {recipe: tokenizer.yaml}}
teacher: {use: compact, width: 16, depth: 2, heads: 2, weights: {recipe: teacher.yaml}}
train:
  iterations: 4
  batch_size: 8
  terms:
    - {use: dimo, guidance: {scale: 2}}
    - {use: gan, weight: {ratio: 0.3}, discriminator: {use: teacher_features, hidden: 8}}
"""
JUDGE = """\
title: Tiny judge
data: {use: digits}
features: {use: cnn, width: 4, features: 4}
train: {network: features, iterations: 4, batch_size: 8, ema: {half_lives: [5]}, log_every: 2}
"""
DIMO = """\
title: Tiny Di[M]O
base: teacher.yaml
teacher: {weights: {recipe: teacher.yaml}}
train:
  network: student
  player: {optimizer: {lr: 1e-3}}
  terms:
    - {use: dimo, guidance: {scale: 1.5}, player: {optimizer: {lr: 1e-3}}}
"""
SECTIONS = """\
eval:
  samples: 8
  seeds: [0, 1]
  reference: 40
  batch_size: 8
  metrics: [{use: accuracy, features: &judge {use: cnn, width: 4, features: 4, weights: {recipe: judge.yaml}}}]
  rows:
    - {name: codes, of: reconstruction}
    - {name: teacher, of: teacher, sampler: {use: maskgit, steps: 3}}
    - {name: student, of: student}
search:
  conditions: 2
  score: {use: class_log_prob, classifier: *judge}
  methods: [{name: best of 2, search: {use: best_of_n, n: 2}}]
"""

TERMS = """\
train:
  terms:
    - {use: dimo}
    - {use: gan, weight: {ratio: 0.5}, r1: 0.1, discriminator: {use: teacher_features, hidden: 8}}
    - use: reward
      rewards:
        - reward:
            use: class_log_prob
            classifier: {use: cnn, width: 4, features: 4, weights: {recipe: judge.yaml}}
"""


def write(folder: Path) -> Path:
    """Write the recipes; returns that of Di[M]O. `whole.yaml` adds evaluation and search, `terms.yaml` a GAN and
    a reward; `student.yaml` is Di[M]O and a GAN without a base."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"tokenizer": TOKENIZER, "teacher": TEACHER, "judge": JUDGE, "student": STUDENT}
    texts |= {"dimo": DIMO, "whole": DIMO + SECTIONS}
    texts["terms"] = "title: Tiny Soft-Di[M]O\nbase: dimo.yaml\n" + TERMS
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / "dimo.yaml"


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
    home = write(root).parent
    for seed, name in enumerate(("tokenizer", "teacher", "student")):
        loaded = recipes.load(home / f"{name}.yaml", smoke=smoke)
        place = root / "runs" / ("student" if name == "student" else f"cache/{cache_name(loaded)}")
        finish(loaded, place, seed + 11)
    return root / "runs" / "student"
