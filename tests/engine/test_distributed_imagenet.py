"""The recipe for the public MaskGIT on two ranks, two blocks deep: it starts, saves, and one process goes on."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import pytest
import torch

from softdimo.build import PRODUCT
from softdimo.engine import checkpoint
from softdimo.files import read_weights
from tests import ranks
from tests.engine.distributed import CPU

RECIPE = Path(__file__).parents[2] / "recipes" / "maskgit_dimo.yaml"
EVERY = ("--smoke", *CPU, "train.checkpoint_minutes=1e-6", "train.sampler=null", "eval=null")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_save_and_one_process_goes_on(strategy: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    two = ("hardware.devices=2", f"hardware.strategy={strategy}")
    both = ranks.commands(2, ("run", RECIPE, *EVERY, *two, "--out", out), tmp_path / "two")
    both[0].until(lambda: bool(checkpoint.complete(out / "checkpoints")), 600)
    for rank in both:  # at once: nothing is saved any more
        rank.send(signal.SIGKILL)
    assert [rank.wait() for rank in both] == [-signal.SIGKILL] * 2, [rank.said for rank in both]
    assert [p.name for p in checkpoint.complete(out / "checkpoints")] == ["iter-00000001"]
    (alone,) = ranks.commands(1, ("run", RECIPE, *EVERY, "--out", out, "--resume"), tmp_path / "one")
    assert alone.wait(600) == 0, alone.said
    assert "resumed at 1" in alone.said
    with (out / "log.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["0", "1"]
    assert all(float(row["dimo/divergence"]) >= 0 for row in rows)
    product, live = read_weights(out / PRODUCT), read_weights(out / "live.safetensors")
    assert product["tok_emb.weight"].shape == (1024 + 1000 + 2, 768)
    assert product.keys() == live.keys()
    assert all(bool(t.isfinite().all()) for t in live.values())
    assert not torch.equal(product["last_layer.2.weight"], live["last_layer.2.weight"])
