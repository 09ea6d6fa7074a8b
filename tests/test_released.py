"""A one-step student that others released: scored, and trained on, from a file with the teacher's public keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softdimo import recipe as recipes
from softdimo import run as running
from softdimo.build import PRODUCT
from softdimo.errors import WeightsError
from softdimo.files import read_weights, save_weights
from softdimo.kinds import Context, ImageShape, Teacher, TokenShape
from softdimo_plugins.features.cnn import CNN
from softdimo_plugins.teachers.maskgit import MaskGit
from softdimo_plugins.tokenizers.vqgan import VQGAN

SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "classes": 10}
TOKENIZER = {"width": 32, "latent": 8, "dim": 6, "codebook": 9, "multipliers": (1, 1), "blocks": 1}
RECIPE = """\
title: Released student
data: {use: digits, condition: digit}
tokenizer: {use: vqgan, width: 32, latent: 8, dim: 6, codebook: 9, multipliers: [1, 1], blocks: 1, weights: VQGAN}
teacher: {use: maskgit, width: 16, depth: 2, heads: 2, mlp: 24, classes: 10, weights: teacher.pth}
eval:
  samples: 8
  seeds: [0]
  batch_size: 8
  metrics: [{use: inception_score, features: {use: cnn, width: 4, features: 4, weights: judge.safetensors}}]
  rows:
    - {name: real, of: real}
    - {name: released, of: student, weights: pytorch_model.bin}
hardware: {jobs: 1, threads: 1, accelerator: cpu}
"""
TRAIN = """\
train:
  iterations: 2
  batch_size: 4
  ema: {half_lives: []}
  player: {optimizer: {lr: 1e-9}}
  terms: [{use: dimo}]
  start: {from: pytorch_model.bin, lead: 1}
"""


def context(tokens: TokenShape | None = None) -> Context:
    return Context(ImageShape(1, 8, 8), ("",) * 10, None, tokens)  # type: ignore[arg-type]


def network(seed: int) -> Teacher:
    torch.manual_seed(seed)
    return MaskGit(**SIZES).build(context(TokenShape(4, 4, 1, 9)))


def public(net: Teacher) -> dict[str, Tensor]:
    return {key.replace(".in_proj.", ".in_proj_"): t for key, t in net.state_dict().items()}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A recipe and the files that it names."""
    torch.save({"model_state_dict": public(network(0))}, tmp_path / "teacher.pth")
    torch.save(public(network(1)), tmp_path / "pytorch_model.bin")
    torch.manual_seed(2)
    torch.save({"state_dict": VQGAN(**TOKENIZER).build(context()).state_dict()}, tmp_path / "VQGAN")
    save_weights(tmp_path / "judge.safetensors", CNN(width=4, features=4).build(context()).state_dict())
    (tmp_path / "scored.yaml").write_text(RECIPE)
    (tmp_path / "continued.yaml").write_text(RECIPE + TRAIN)
    return tmp_path


def test_it_is_scored_and_trained_on(home: Path) -> None:
    """Both take its weights, not the teacher's, from the public container."""
    folder = running.run(recipes.load(home / "scored.yaml"), home / "runs" / "scored", say=lambda text: None)
    one = {row["name"]: row for row in json.loads((folder / "eval.json").read_text())["rows"]}
    save_weights(home / "pytorch_model.safetensors", network(1).state_dict())
    plain = (home / "scored.yaml").read_text().replace("pytorch_model.bin", "pytorch_model.safetensors")
    (home / "plain.yaml").write_text(plain)
    folder = running.run(recipes.load(home / "plain.yaml"), home / "runs" / "plain", say=lambda text: None)
    two = {row["name"]: row for row in json.loads((folder / "eval.json").read_text())["rows"]}
    assert one["released"]["metrics"] == two["released"]["metrics"]
    assert one["released"]["key"] == two["released"]["key"]  # the same network, whatever the file
    folder = running.run(recipes.load(home / "continued.yaml"), home / "runs" / "continued", say=lambda text: None)
    product, released = read_weights(folder / PRODUCT), network(1).state_dict()
    assert product.keys() == released.keys()
    assert max(float((t - released[key]).abs().max()) for key, t in product.items()) < 1e-7
    assert not torch.equal(product["last_layer.2.weight"], released["last_layer.2.weight"])  # it did take a step


@pytest.mark.parametrize("name", ["scored", "continued"])
def test_a_file_of_another_size_says_what_to_change(home: Path, name: str) -> None:
    torch.manual_seed(1)
    other = MaskGit(**SIZES | {"mlp": 32}).build(context(TokenShape(4, 4, 1, 9)))
    torch.save(public(other), home / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is MaskGit-PyTorch v1\.0 with mlp: 32"):
        running.run(recipes.load(home / f"{name}.yaml"), home / "runs" / name, say=lambda text: None)
