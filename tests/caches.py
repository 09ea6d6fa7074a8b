"""A folder of pictures, two tokenizers, and the token caches that they make."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softdimo import recipe as recipes
from softdimo.build import Components
from softdimo.files import save_weights
from softdimo.inputs import tokenize
from softdimo.inputs.shards import Index
from softdimo.kinds import Context, ImageShape
from softdimo.recipe import Loaded
from softdimo_plugins.data.tokens import Tokens

BLANK = Context(ImageShape(1, 1, 1), (), print)
TRAIN, HELD_OUT, SHARD = 36, 4, 10


def write(folder: Path) -> Path:
    """40 pictures of two classes, and two tokenizers with weights."""
    rng = np.random.RandomState(0)
    for i in range(TRAIN + HELD_OUT):
        path = folder / "images" / ("cats", "dogs")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (12, 9, 3), np.uint8)).save(path)
    for seed in (0, 1):
        path = folder / f"{seed}.yaml"
        path.write_text(
            f"title: Tokens\nseed: {seed}\nhardware: {{accelerator: cpu}}\n"
            "data: {use: folder, path: images, size: 8, channels: 3, in_memory: false, crop: center}\n"
            "tokenizer: {use: conv_vq, patch: 4, codebook: 16, width: 4}\n"
        )
        state = Components(recipes.load(path).recipe).require_tokenizer().state_dict()
        noise = torch.Generator().manual_seed(seed)  # fresh codes are so small that every patch has the same one
        for value in state.values():
            if value.is_floating_point():
                value += 0.5 * torch.randn(value.shape, generator=noise)
        save_weights(folder / f"{seed}.safetensors", state)
    return folder


def loaded(home: Path, *overrides: str, weights: int = 0) -> Loaded:
    return recipes.load(home / "0.yaml", [f"tokenizer.weights={home}/{weights}.safetensors", *overrides])


def make(home: Path, out: Path, *overrides: str, **how: bool) -> Index:
    return tokenize.tokenize(
        loaded(home, *overrides), out, shard_size=SHARD, batch_size=4, say=lambda text: None, **how
    )


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def read(folder: Path, **settings: object) -> Tokens:
    return Tokens.model_validate({"path": str(folder), "size": 8, **settings})


def parts(home: Path, folder: Path, weights: int = 0) -> Components:
    data = f"data={{use: tokens, path: {folder}, size: 8}}"
    return Components(loaded(home, data, weights=weights).recipe)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def cache(home: Path) -> Path:
    make(home, home / "cache")
    return home / "cache"


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "copy"))
