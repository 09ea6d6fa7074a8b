"""Synthetic run folders with everything a real one has: a chain of cached runs, logs, samples, metrics, a search."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import torch
import yaml

from softdimo.strips import strip

CLASSES = ["bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra"]
PLAYER = {
    "optimizer": {"name": "adam", "lr": 0.0006, "betas": [0.0, 0.99], "warmup": 20, "decay": "cosine"},
    "clip": 1.0,
}
TERMS: list[dict[str, Any]] = [
    {"use": "dimo", "name": "dimo", "weight": 1.0, "player": PLAYER},
    {"use": "gan", "name": "gan", "weight": {"ratio": 0.3, "of": "dimo"}, "discriminator": {"use": "teacher_features"},
     "player": {"optimizer": {"name": "adam", "lr": 0.0001, "betas": [0.0, 0.99]}, "every": 2}},
    {"use": "reward", "name": "reward", "weight": 2.0, "rewards": [{"reward": {"use": "class_log_prob"}}]},
]  # fmt: skip


def write_yaml(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def write_log(path: Path, columns: dict[str, Any], rows: int = 60, every: int = 10) -> None:
    """Columns are functions of progress in [0, 1]."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", *columns])
        for i in range(rows):
            writer.writerow([i * every + every - 1, *(f(i / rows) for f in columns.values())])


def decay(start: float, end: float, noise: float = 0.05, seed: int = 0) -> Any:
    rng = random.Random(seed)
    return lambda t: (end + (start - end) * math.exp(-5 * t)) * (1 + noise * rng.gauss(0, 1))


def recipe(train: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "title": "Soft-Di[M]O on animal silhouettes",
        "seed": 3407,
        "schedule": "arccos",
        "init": {"r_init": 0.6, "sigma": 0.1, "noise_rms": "table"},
        "data": {"use": "animals"},
        "tokenizer": {"use": "conv_vq", "weights": {"recipe": "/recipes/animals_tokenizer.yaml"}},
        "teacher": {"use": "compact", "weights": {"recipe": "/recipes/animals_teacher.yaml"}},
        "train": train,
        **more,
    }


def blobs(n: int, seed: int, size: int = 28) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    a = torch.rand(n, 4, 1, 1, generator=rng)
    g = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(g, g, indexing="ij")
    d = ((x - a[:, 0] + 0.5) / (0.3 + a[:, 2])) ** 2 + ((y - a[:, 1] + 0.5) / (0.3 + a[:, 3])) ** 2
    return torch.sigmoid(12 * (0.8 - d))[:, None].round()


def metric(mean: float, sd: float | None) -> dict[str, Any]:
    values = [mean] if sd is None else [mean - sd, mean, mean + sd]
    return {"value": mean, "sd": sd, "values": values}


def row(name: str, of: str, passes: float, fd: float, acc: float, **more: Any) -> dict[str, Any]:
    sd = None if of in ("real", "reconstruction") else 0.03 * fd
    small = None if sd is None else 0.006
    rest = {
        "precision": 0.9 - fd / 300,
        "recall": 0.9 - fd / 150,
        "density": 0.8 - fd / 200,
        "coverage": 0.8 - fd / 180,
    }
    metrics = {
        "fd": metric(fd, sd),
        "inception_score": metric(9 - fd / 20, small and 0.07),
        "accuracy": metric(acc, small),
    }
    metrics |= {k: metric(v, small) for k, v in rest.items()}
    return {
        "name": name,
        "of": of,
        "n": 1000,
        "passes": passes,
        "sampler": None,
        "metrics": metrics,
        "seconds": 1.5,
    } | more


def evaluation() -> dict[str, Any]:
    sha = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    print_ = {"formula": "frechet", "features": sha, "reference_size": 8716, "reference": sha[::-1]}
    return {
        "evaluator": {"frechet": print_, "accuracy": print_ | {"formula": "argmax"}, "data": "animals:" + sha},
        "evaluator_hash": sha,
        "samples": 1000,
        "seeds": [0, 1, 2],
        "rows": [
            row("real held out", "real", 0, 1.23, 0.971),
            row("reconstruction", "reconstruction", 0, 4.4, 0.965),
            row("teacher, 16 steps", "teacher", 31, 8.9, 0.93),
            row("teacher, 8 steps", "teacher", 15, 10.8, 0.92),
            row("teacher, 4 steps", "teacher", 7, 15.1, 0.9),
            row("teacher, 2 steps", "teacher", 3, 26.4, 0.86),
            row("teacher, 1 step", "teacher", 1, 62.3, 0.61),
            row("Di[M]O", "student", 1, 10.6, 0.921, decode="hard"),
            row("Soft-Di[M]O", "student", 1, 9.4, 0.958, decode="hard"),
            row("Soft-Di[M]O, soft decode", "student", 1, 14.2, 0.961, decode="soft"),
        ],
    }


def search() -> dict[str, Any]:
    def trace(low: float, high: float, starts: int, points: int) -> list[list[float]]:
        return [[high - (high - low) * 0.5 ** (i + 0.7 * s) for i in range(points)] for s in range(starts)]

    def method(
        name: str, passes: float, score: float, judge: float, starts: int = 1, points: int = 1
    ) -> dict[str, Any]:
        costs = [[(s + 1) * (1 + 3 * i) for i in range(points)] for s in range(starts)]
        return {"name": name, "passes": passes, "seconds": passes * 0.4, "score_mean": score, "score_sem": 0.02,
                "held_out": {"second judge": judge}, "trace_passes": costs,
                "trace": trace(-0.72, score, starts, points), "gain_mean": score + 0.72, "gain_sem": 0.015}  # fmt: skip

    against = {"name": "best of 52, argmax", "score": {"mean": 0.021, "sem": 0.004, "higher": 131, "lower": 47},
               "held_out": {"second judge": {"mean": -0.002, "sem": 0.005, "higher": 61, "lower": 66}}}  # fmt: skip
    return {
        "conditions": 200,
        "methods": [
            method("one step, argmax", 1, -0.72, 0.79),
            method("best of 4", 4, -0.25, 0.947, 4),
            method("best of 16", 16, -0.13, 0.975, 16),
            method("TTEO, 1 start", 13, -0.16, 0.945, 1, 5),
            method("TTEO, 4 starts", 52, -0.06, 0.973, 4, 5) | {"against": against},
        ],
        "pictures": {"TTEO, 4 starts": "search/TTEO_4_starts.png"},
    }


def student_columns() -> dict[str, Any]:
    return {
        "dimo/loss": decay(-30, -2, 0.1, 1), "dimo/divergence": decay(1.4, 0.12, 0.05, 2),
        "dimo/student_entropy": decay(2.4, 0.9, 0.02, 3), "dimo/auxiliary_entropy": decay(2.5, 1.6, 0.02, 4),
        "dimo/teacher_entropy": decay(1.5, 1.4, 0.02, 5), "dimo/auxiliary_ce": decay(3.4, 1.7, 0.02, 6),
        "dimo/grad_at_logits": decay(3, 0.4, 0.1, 7), "dimo/weight": lambda t: 1.0,
        "gan/loss": decay(0.5, 0.9, 0.05, 8), "gan/generator": decay(0.5, 0.9, 0.05, 8),
        "gan/real": decay(0.5, 0.62, 0.03, 9),
        "gan/fake": decay(0.5, 0.36, 0.03, 10), "gan/discriminator": decay(1.38, 1.1, 0.02, 11),
        "gan/grad_at_logits": decay(0.01, 0.03, 0.1, 12), "gan/weight": decay(90, 4, 0.1, 13),
        "gan/critic_grad_norm": decay(3, 0.5, 0.2, 14), "generator/grad_norm": decay(40, 3, 0.2, 15),
        "dimo/critic_grad_norm": decay(5, 0.8, 0.2, 16), "reward/loss": decay(0.9, 0.2, 0.1, 17),
        "reward/weight": lambda t: 2.0, "reward/class_log_prob": decay(-0.9, -0.2, 0.1, 18),
        "reward/held_out/second judge": decay(-1.0, -0.35, 0.1, 19),
    }  # fmt: skip


def full_run(root: Path, title: str = "Soft-Di[M]O on animal silhouettes", rows: int = 120) -> Path:
    """`root/animals` and the cached runs that it rests on."""
    cache = root / "cache"
    tokenizer, teacher, dimo, judge = (
        cache / f"animals_{n}-0a1b2c3d" for n in ("tokenizer", "teacher", "dimo", "judge")
    )
    made = {"iterations": 800, "batch_size": 64, "player": PLAYER}
    write_yaml(tokenizer / "recipe.yaml", recipe({"network": "tokenizer", **made}, title="Convolutional VQ, 49 tokens")
               | {"tokenizer": {"use": "conv_vq", "weights": None}, "teacher": None})  # fmt: skip
    write_log(
        tokenizer / "log.csv", {"loss": decay(0.4, 0.03), "perplexity": decay(10, 90), "grad_norm": decay(2, 0.2)}, 80
    )
    write_yaml(teacher / "recipe.yaml", recipe({"network": "teacher", **made}, title="Masked diffusion teacher")
               | {"teacher": {"use": "compact", "weights": None}})  # fmt: skip
    write_log(teacher / "log.csv", {"loss": decay(4.8, 1.9), "grad_norm": decay(3, 0.6)}, 80)
    write_yaml(judge / "recipe.yaml", {"title": "Judge", "data": {"use": "animals"}, "features": {"use": "cnn"},
                                       "train": {"network": "features", **made}})  # fmt: skip
    write_log(judge / "log.csv", {"loss": decay(2.3, 0.3), "accuracy": lambda t: 0.97 - 0.8 * math.exp(-6 * t)}, 60)
    write_yaml(dimo / "recipe.yaml", recipe({**made, "terms": TERMS[:1]}, title="Di[M]O"))
    columns = student_columns()
    write_log(dimo / "log.csv", {k: v for k, v in columns.items() if k.startswith(("dimo/", "generator/"))}, rows)

    run = root / "animals"
    student = {"network": "student", "iterations": 600, "batch_size": 48, "player": PLAYER, "terms": TERMS,
               "start": {"from": {"recipe": "/recipes/animals_dimo.yaml"}, "critics": True, "lead": 0}}  # fmt: skip
    reward = {"use": "class_log_prob", "features": {"use": "cnn", "weights": {"recipe": "/recipes/animals_judge.yaml"}}}
    written = [{"name": r["name"], "of": r["of"], "weights": "dimo" if r["name"] == "Di[M]O" else None}
               for r in evaluation()["rows"]]  # fmt: skip
    sections = {"eval": {"samples": 1000, "rows": written}, "search": {"conditions": 200, "score": reward}}
    write_yaml(run / "recipe.yaml", recipe(student, title=title, **sections))
    write_log(run / "log.csv", student_columns(), rows)
    write_json(run / "lock.json", {
        "recipe": "c0ffee" * 10, "softdimo": "0.1.0", "python": "3.11.2", "platform": "Linux-6.1-x86_64", "cpus": 2,
        "command": ["softdimo", "run", "recipes/animals.yaml"], "git": "1e32a09b7c11",
        "distributions": {"softdimo": "0.1.0", "torch": "2.14.1", "lightning-fabric": "2.6.6", "numpy": "2.3.1"},
    })  # fmt: skip
    write_json(run / "eval.json", evaluation())
    write_json(run / "search.json", search())
    labels = [f"{c}: -0.81 to -0.07" for c in CLASSES[:3]]
    steps = [(label, blobs(6, i)) for i, label in enumerate(labels)]
    strip(steps, run / "search" / "TTEO_4_starts.png", ["start", *(f"step {i}" for i in range(1, 5)), "winner"])
    (run / "health.txt").write_text(
        "auxiliary lag +0.61 nats (its cross-entropy above its entropy): it trails the student; raise its lr\n"
        "token entropy 0.91 nats (teacher at x_t 1.40)\nD(real) 0.62, D(generated) 0.36\n"
    )
    for k in (100, 200, 300, 400, 500, 600):
        rows_ = [(label, blobs(10, k + i)) for i, label in enumerate(
            ("teacher, 16 steps", "student", "EMA, hard decode", "EMA, soft decode"))]  # fmt: skip
        strip(rows_, run / "samples" / f"{k:06d}.png", CLASSES)
    return run
