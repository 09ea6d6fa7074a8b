"""Every switch of Di[M]O on the exact toy: `python benchmarks/toy.py RUNS` (three minutes on one thread).

`recipes/toy.yaml` and its variants, over three training seeds. Two binary tokens can be enumerated, so the total
variation between the student's joint distribution and that of the data is summed, not sampled. Writes results/toy.json
and results/toy.png.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, provenance, write_result
from toy_picture import draw

from softdimo import recipe, run
from softdimo.export import load
from softdimo.kinds import Cond, Teacher
from softdimo.math.init import Init
from softdimo_plugins.teachers.tabular import one_step_joint

RECIPE = Path(__file__).parent.parent / "recipes" / "toy.yaml"
SEEDS = (0, 1, 2)
SOLVED = 0.02
"""Largest total variation that counts as having learned the joint."""


@dataclass(frozen=True)
class Variant:
    """The recipe with some settings changed."""

    group: str
    name: str
    overrides: tuple[str, ...] = ()
    note: str = ""
    solved_start: bool = False
    """Start from the student that the recipe as it is has made with the same seed."""


def variants() -> list[Variant]:
    """The switches, one at a time."""
    dimo = recipe.load(RECIPE).recipe.train.terms[0].model_dump(mode="json")  # type: ignore[union-attr]
    gan = {
        "use": "gan",
        "weight": {"ratio": 0.5, "of": "dimo"},
        "discriminator": {"use": "teacher_features", "hidden": 32},
        "player": {"optimizer": {"lr": 1e-2, "betas": [0, 0.99]}},
    }
    with_gan, no_psi, all_masks = f"train.terms={json.dumps([dimo, gan])}", _dimo("auxiliary=none"), "init.r_init=1"
    start, term = "Start of the student", "Loss"
    aux, soft = "Auxiliary model", "Relaxation of the tokens"
    beta = {b: _dimo(f"divergence={{name: jeffreys, beta: {b}}}") for b in (-0.2, 0, 0.5, 1)}
    return [
        Variant(start, "one mask, one random token (the recipe)"),
        Variant(start, "r_init 0", ("init.r_init=0",), "one mask at least: the same start"),
        Variant(start, "r_init 1: two masks", (all_masks,), "tokens are independent"),
        Variant(start, "r_init 1 and noise, sigma 0.3", (all_masks, "init.sigma=0.3"), "the noise is what they share"),
        Variant(start, "sigma 0.1", ("init.sigma=0.1",)),
        Variant(start, "sigma 0.3", ("init.sigma=0.3",)),
        Variant(term, "Jeffreys, beta -0.2", (beta[-0.2],)),
        Variant(term, "Jeffreys, beta 0", (beta[0],), "forward KL: the recipe"),
        Variant(term, "Jeffreys, beta 0.5", (beta[0.5],)),
        Variant(term, "Jeffreys, beta 1", (beta[1],), "reverse KL"),
        Variant(term, "Jacobian of the student's softmax", (_dimo("jacobian=student"),)),
        Variant(term, "mean over masked tokens", (_dimo("normalization=mean_masked"),), "instead of the sum"),
        Variant(aux, "share_t: one re-masking", (_dimo("share_t=true"),)),
        Variant(aux, "none", (no_psi,), "the student in its place: no gradient"),
        Variant(aux, "none, from the solution", (no_psi,), "it does not stay there", solved_start=True),
        Variant(aux, "a copy, from the solution", (), "stays there", solved_start=True),
        Variant(
            soft, "straight-through", ("train.relaxation.kind=straight_through",), "Di[M]O reads hard tokens: no effect"
        ),
        Variant(soft, "Di[M]O + GAN, soft", (with_gan,), "D sees mixtures, and real tokens"),
        Variant(soft, "Di[M]O + GAN, Gumbel", (with_gan, "train.relaxation.kind=gumbel")),
        Variant(soft, "Di[M]O + GAN, straight-through", (with_gan, "train.relaxation.kind=straight_through")),
    ]


def _dimo(setting: str) -> str:
    return f"train.terms.dimo.{setting}"


def joint_of(net: Teacher, init: Init) -> torch.Tensor:
    """p(00), p(01), p(10), p(11) of one step."""
    return one_step_joint(net, init, Cond(torch.zeros(1, dtype=torch.long)))


def total_variation(p: Sequence[float] | torch.Tensor, q: Sequence[float] | torch.Tensor) -> float:
    """Half the sum of absolute differences."""
    p, q = (torch.as_tensor(x, dtype=torch.float64) for x in (p, q))
    return float((p - q).abs().sum() / 2)


def best_factorized(joint: Sequence[float], points: int = 2001) -> float:
    """Least total variation of any product of two coins from the joint, over a grid of their probabilities."""
    a = torch.linspace(0, 1, points, dtype=torch.float64)
    first, second = torch.stack([1 - a, a], -1)[:, None], torch.stack([1 - a, a], -1)[None]
    p = torch.einsum("abv,abw->abvw", first.expand(-1, points, -1), second.expand(points, -1, -1)).flatten(2)
    return float((p - torch.tensor(joint, dtype=torch.float64)).abs().sum(-1).min() / 2)


def trained(variant: Variant, seed: int, runs: Path) -> tuple[Path, list[float]]:
    """Run the variant; its folder, and the joint of its student."""
    overrides = [f"seed={seed}", *variant.overrides]
    if variant.solved_start:
        overrides.append(f"train.start.from={_folder(variants()[0], seed, runs).resolve()}")
    folder = run.run(recipe.load(RECIPE, overrides), _folder(variant, seed, runs), fresh=True, say=lambda text: None)
    generator = load(folder, device="cpu")
    return folder, joint_of(generator.net, generator.init).tolist()


def _folder(variant: Variant, seed: int, runs: Path) -> Path:
    words = "".join(c if c.isalnum() or c in ".-" else "_" for c in f"{variant.group} {variant.name}")
    return runs / "toy" / f"{words}-{seed}"


def main(runs: Path) -> None:
    """Train, sum, write, draw."""
    torch.set_num_threads(1)
    loaded = recipe.load(RECIPE)
    data: Any = loaded.recipe.data
    rows = []
    for variant in variants():
        joints = [trained(variant, seed, runs)[1] for seed in SEEDS]
        tv = [total_variation(joint, data.joint) for joint in joints]
        rows.append(
            {"group": variant.group, "name": variant.name, "note": variant.note, "overrides": list(variant.overrides)}
            | {"start": "the recipe's student" if variant.solved_start else "the teacher"}
            | {"tv": tv, "mean": statistics.fmean(tv), "sd": statistics.stdev(tv), "joints": joints}
        )
        print(f"{variant.group:26}{variant.name:42}" + " ".join(f"{v:.4f}" for v in tv), flush=True)
    teacher = run.start_session(loaded, runs).parts(loaded).require_teacher()
    assert loaded.recipe.train is not None
    result = {
        "joint": list(data.joint),
        "seeds": list(SEEDS),
        "iterations": loaded.recipe.train.iterations,
        "solved": SOLVED,
        "start": total_variation(joint_of(teacher, loaded.recipe.init), data.joint),
        "best_factorized": best_factorized(data.joint),
        "rows": rows,
        "cpu_seconds": round(time.process_time()),
        "provenance": provenance(),
    }
    write_result("toy", result)
    draw(result, RESULTS / "toy.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
