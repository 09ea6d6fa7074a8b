"""What a run holds in memory: `python benchmarks/memory.py` (two minutes of one CPU).

1. The divergence and its gradient in chunks of rows, against the same formulas on whole tensors, in tensors of logits.
2. What `softdimo check` expects of an iteration against what one takes, for several recipes and settings.
3. What an auxiliary of adapters takes away from one that is a copy.

Measured on the CPU: the largest sum of what torch's allocator has handed out and not taken back. Weights are random,
which changes no size. Writes results/memory.json and prints tables.
"""

from __future__ import annotations

import gc
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from instruments import peak_bytes
from PIL import Image
from provenance import provenance, write_result
from rich.console import Console
from torch import Tensor

from softdimo import recipe
from softdimo.build import Components
from softdimo.cli.check import Estimate, check
from softdimo.engine.hardware import launch
from softdimo.engine.train import Training
from softdimo.files import save_weights
from softdimo.math.divergence import CLAMP, Divergence, surrogate
from softdimo.memory.sizes import human

RECIPES = Path(__file__).parent.parent / "recipes"
LARGER = """\
title: Twelve layers of width 384 on 256 tokens
data: {use: folder, path: pictures, size: 64, channels: 1, held_out: 0.5}
tokenizer: {use: conv_vq, patch: 4, codebook: 1024, width: 16}
teacher: {use: compact, width: 384, depth: 12, heads: 6}
train:
  iterations: 2
  batch_size: 4
  terms: [TERM]
"""
AGAIN = "hardware.activation_checkpointing=true"
UNITS = (4 * 256, 1024)
"""N masked units and V classes of the divergence: B = 4, L = 256, all of them masked."""


def peak(fn: Callable[[], object]) -> int:
    """Most bytes of tensors that are alive at once while `fn` runs, of those that it makes."""
    gc.collect()  # garbage of before, freed in between, would count as negative
    return peak_bytes(fn)


# 1. The divergence


def plain(p_logits: Tensor, q_logits: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Value [N] and gradient [N V] of the generalized Jeffreys divergence on whole tensors."""
    with torch.no_grad():
        log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        a = (log_p - log_q).clamp(-CLAMP, CLAMP)
        value = ((beta * p - (1 - beta) * q) * a).sum(-1)
        flow = beta * p * a - (1 - beta) * q
        return value, flow - p * flow.sum(-1, keepdim=True)


def kernel() -> dict[str, Any]:
    """Peaks beside the given logits of p, q and z, in tensors of logits; both versions must agree."""
    rng = torch.Generator().manual_seed(0)
    p, q, z = (torch.randn(UNITS, generator=rng) for _ in range(3))
    beta, size = -0.2, p.nbytes
    jeffreys = Divergence(name="jeffreys", beta=beta)
    z.requires_grad_()

    def chunked() -> tuple[Tensor, Tensor]:
        return jeffreys.value(p, q), jeffreys.gradient(p, q)

    def whole() -> tuple[Tensor, Tensor]:
        return plain(p, q, beta)

    def trained(divergence: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(surrogate(z, divergence()[1], 4), z)

    for ours, theirs in zip(chunked(), whole(), strict=True):
        torch.testing.assert_close(ours, theirs)
    return {
        "units": UNITS[0],
        "classes": UNITS[1],
        "logits": size,
        "chunked": peak(chunked) / size,
        "whole tensors": peak(whole) / size,
        "chunked, and the student's gradient": peak(trained(chunked)) / size,
        "whole tensors, and the student's gradient": peak(trained(whole)) / size,
    }


# 2. An iteration


@dataclass(frozen=True)
class Case:
    """A recipe with overrides."""

    name: str
    path: Path
    overrides: tuple[str, ...] = ()


def term(**settings: object) -> str:
    """The term `dimo` as YAML."""
    return json.dumps({"use": "dimo", "share_t": True} | settings)


def cases(folder: Path) -> list[Case]:
    """Animals as they ship, and a larger network, with what changes their memory."""
    (folder / "pictures" / "noise").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(16):
        pixels = rng.integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / "noise" / f"{i}.png")
    adapters = {"use": "lora", "rank": 32}
    for name, settings in {"copy": {}, "lora": {"auxiliary": adapters}, "two": {"share_t": False}}.items():
        (folder / f"{name}.yaml").write_text(LARGER.replace("TERM", term(**settings)), encoding="utf-8")
    animals, parts = RECIPES / "animals_dimo.yaml", RECIPES / "parts"
    gan = f"train.terms=[{term()}, {json.dumps({'use': 'gan', 'discriminator': {'use': 'teacher_features'}})}]"
    none = f"train.terms=[{term(share_t=False, auxiliary='none')}]"
    return [
        Case("animals_dimo", animals),
        Case("animals_dimo, recomputed", animals, (AGAIN,)),
        Case("animals_dimo, bf16-mixed", animals, ("hardware.precision=bf16-mixed",)),
        Case("animals_dimo, lora", parts / "animals_dimo_lora.yaml"),
        Case("animals_dimo, lora, recomputed", parts / "animals_dimo_lora.yaml", (AGAIN,)),
        Case("animals_dimo, two masks", parts / "animals_dimo_independent.yaml"),
        Case("animals_dimo, no auxiliary", animals, (none,)),
        Case("animals_dimo, GAN", animals, (gan,)),
        Case("animals_dimo, GAN, recomputed", animals, (gan, AGAIN)),
        Case("animals_teacher", RECIPES / "animals_teacher.yaml"),
        Case("animals_teacher, recomputed", RECIPES / "animals_teacher.yaml", (AGAIN,)),
        Case("larger", folder / "copy.yaml"),
        Case("larger, recomputed", folder / "copy.yaml", (AGAIN,)),
        Case("larger, lora", folder / "lora.yaml"),
        Case("larger, lora, recomputed", folder / "lora.yaml", (AGAIN,)),
        Case("larger, two masks", folder / "two.yaml"),
    ]


def with_random_weights(path: Path, overrides: Sequence[str], folder: Path) -> recipe.Loaded:
    """The recipe with fresh weights in place of those that other recipes make."""
    loaded = recipe.load(path, ["hardware.accelerator=cpu", *overrides])
    bare, files = Components(loaded.recipe), []
    trained = loaded.recipe.train.network if loaded.recipe.train is not None else ""
    for kind in ("tokenizer", "teacher"):
        if kind != trained:
            save_weights(folder / f"{kind}.safetensors", bare.fresh(getattr(loaded.recipe, kind)).state_dict())
            files.append(f"{kind}.weights={folder / kind}.safetensors")
    return recipe.load(path, ["hardware.accelerator=cpu", *overrides, *files])


def iteration(path: Path, overrides: Sequence[str] = ()) -> tuple[Estimate, int]:
    """What `check` says of a recipe, and the bytes that its networks and two iterations take at most, without data."""
    with tempfile.TemporaryDirectory() as name:
        loaded = with_random_weights(path, overrides, Path(name))
        estimate = check(loaded, Console(file=io.StringIO()))
        training = Training(Components(loaded.recipe), launch(loaded.recipe.hardware), Path(name), "", "")
        stream = training.stream()
        batches = [next(stream) for _ in range(2)]
        for network in ("tokenizer", "teacher"):  # they count, so they are built again
            training.parts.__dict__.pop(network, None)
        training.parts._made.clear()

        def run() -> None:
            algorithm = training.algorithm(torch.Generator().manual_seed(0))
            for i, batch in enumerate(batches):
                algorithm.step(i, batch)

        return estimate, peak(run)


def expected(estimate: Estimate) -> int:
    """The part of an estimate that `iteration` measures."""
    return estimate.networks + max(phase.size for phase in estimate.phases)


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    divergence = kernel()
    for name, value in divergence.items():
        if isinstance(value, float):
            print(f"{name:45} {value:6.2f} tensors of logits beside the given ones")
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder)):
            estimate, measured = iteration(case.path, case.overrides)
            said = expected(estimate)
            rows[case.name] = {
                "expected": said,
                "measured": measured,
                "error": said / measured - 1,
                "networks": {share.name: share.total for share in estimate.shares},
                "turns": {phase.name: phase.size for phase in estimate.phases},
            }
            print(
                f"{case.name:32} expected {human(said):>11} measured {human(measured):>11} {said / measured - 1:+7.1%}"
            )
    saved = {
        name: {what: rows[name][what] - rows[f"{name}, lora"][what] for what in ("expected", "measured")}
        for name in ("animals_dimo", "larger")
    }
    for name, each in saved.items():
        print(f"{name}: adapters take {human(each['measured'])} less than a copy (expected {human(each['expected'])})")
    print(
        write_result(
            "memory", {"provenance": provenance(), "divergence": divergence, "iterations": rows, "lora saves": saved}
        )
    )


if __name__ == "__main__":
    main()
