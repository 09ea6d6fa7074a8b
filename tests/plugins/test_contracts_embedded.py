"""Every component that pyproject.toml names keeps the contract of its kind, as it is by default and in other shapes.

A new one is checked as `--smoke` would make it; what cannot be built so, or has more shapes, has settings in `CASES`.
"""

from __future__ import annotations

import importlib
import json
import tarfile
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from softdimo import registry, testing
from softdimo.kinds import Cond, Context, ImageShape, TokenShape
from softdimo.spec import Spec
from softdimo_plugins.metrics.outside import STANDIN
from tests import caches

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
CNN = {"use": "cnn", "width": 4, "features": 8}
TWO_BITS = {"tokens": TokenShape(1, 2, 1, 2)}
ONE_GROUP = {"tokens": TokenShape(2, 3, 1, 5)}
MASKGEN = {"text_width": 10, "score_width": 8, "encoded": {"states": (4, 10), "pooled": (10,)}}
MEISSONIC = {"width": 32, "heads": 2, "axes": (4, 6, 6), "joint": 1, "single": 1, "text_width": 10, "spare": 3}
MEISSONIC |= {"encoded": {"states": (4, 10), "pooled": (32,)}}
CASES: dict[str, list[dict[str, Any]]] = {
    "teacher compact": [{"width": 16}, {"width": 16, "local": False}, {"width": 24, "heads": 3, "depth": 1}],
    "teacher maskbit": [
        {"width": 16, "depth": 2, "heads": 2, "mlp": 32, "context": {"tokens": TokenShape(2, 3, groups, 4)}}
        | {"pre_norm": pre_norm}
        for groups in (1, 2, 3)
        for pre_norm in (False, True)
    ],
    "teacher tabular": [{"joint": (0.4, 0.1, 0.1, 0.4), "context": TWO_BITS}],
    "teacher maskgit": [
        {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "context": ONE_GROUP},
        {"width": 24, "depth": 1, "heads": 3, "mlp": 8, "classes": 3, "context": ONE_GROUP},
    ],
    "teacher halton": [
        {"width": 16, "depth": 2, "heads": 3, "hidden": 24, "context": ONE_GROUP},
        {"width": 24, "depth": 1, "heads": 2, "registers": 0, "classes": 3, "context": ONE_GROUP},
    ],
    "teacher maskgen": [
        {"width": 16, "depth": 2, "heads": 2, "classes": 3, "context": ONE_GROUP, **MASKGEN},
        {"width": 24, "depth": 1, "heads": 3, "classes": 0, "tied": False, "context": ONE_GROUP, **MASKGEN}
        | {"score_width": 0},
    ],
    "tokenizer tatitok": [
        {"encoder": {"width": 16, "depth": 1, "heads": 2, "patch": 4}, "tokens": 5, "codebook": 9, "dim": 6}
        | {"decoder": {"width": 24, "depth": 2, "heads": 3, "patch": patch}, "text_width": 10, "text_length": 7}
        | {"context": {"image": ImageShape(channels, 12, 12)}, "encoded": {"decoder_states": (7, 10)}}
        for patch, channels in ((3, 3), (6, 1))
    ],
    "teacher meissonic": [
        {**MEISSONIC, "context": {"tokens": TokenShape(4, 6, 1, 5)}, "timestep": 3.0},
        {**MEISSONIC, "joint": 2, "halve": False, "context": ONE_GROUP, "micro": (8, 12, 1, 2, 5.5)},
        {**MEISSONIC, "context": {"tokens": TokenShape(2, 4, 1, 5)}, "mixing": "before"},
        {**MEISSONIC, "context": {"tokens": TokenShape(2, 4, 1, 5)}, "top_k": 2},
    ],
    "tokenizer meissonic_vq": [
        {"widths": (16, 32), "latent": 8, "dim": 6, "codebook": 9, "blocks": 1, "norm_groups": 8}
        | {"context": {"image": ImageShape(channels, 8, 12)}, "attention": channels == 1, "at_once": at_once}
        for channels, at_once in ((1, None), (3, 1), (3, 2))
    ],
    "tokenizer vqgan": [
        {"width": 32, "latent": 8, "dim": 6, "codebook": 9, "multipliers": (1, 2), "blocks": 1, "resolution": 8,
         "attention": (4,), "context": {"image": ImageShape(channels, 8, 12)}}
        for channels in (1, 3)
    ],
    "tokenizer llamagen_vq": [
        {"width": 32, "latent": 8, "dim": 6, "codebook": 9, "multipliers": (1, 1, 1), "blocks": 1}
    ],
    "tokenizer conv_vq": [
        {"width": 8, "patch": patch, "context": {"image": ImageShape(channels, 8, 12)}}
        for patch in (2, 4)
        for channels in (1, 3)
    ],
    "tokenizer conv_lfq": [
        {"width": 8, "patch": patch, "context": {"image": ImageShape(channels, 8, 12)}}
        for patch in (2, 4)
        for channels in (1, 3)
    ],
    "tokenizer maskbit_lfq": [
        {"width": 32, "blocks": 1, "bits": bits, "groups": groups, "multipliers": (1, 2, 1)}
        | {"resample": resample, "context": {"image": ImageShape(channels, 8, 12)}}
        for bits, groups, resample, channels in ((4, 2, True, 3), (3, 1, False, 1), (6, 3, True, 1))
    ],
    "text_encoder clip": [
        {"width": 16, "depth": 2, "heads": 2, "fresh": True},
        {"width": 16, "depth": 3, "heads": 2, "fresh": True, "projection": 8, "activation": "quick_gelu",
         "dtype": "float16", "padding": "zero", "cleaning": "open_clip", "decoder_states": True, "negative": "ugly"},
    ],
    "features inception": [{"fresh": True}],
    "features cnn": [{}, {"width": 4, "depth": 2}, {"width": 4, "context": {"image": ImageShape(3, 8, 12)}}],
    "loss dimo": [
        {},
        {"share_t": True},
        {"fresh_samples": True, "dropout": True},
        {"jacobian": "student"},
        {"normalization": "mean_masked"},
        {"auxiliary": "none", "player": None},
    ],
    "loss gan": [
        {"discriminator": {"use": "teacher_features", "hidden": 8}},
        {"discriminator": {"use": "teacher_features", "hidden": 8}, "loss": "hinge", "r1": 0.1},
        {"discriminator": {"use": "projected", "features": CNN, "hidden": 8}},
    ],
    "loss reward": [{"rewards": [{"reward": {"use": "class_log_prob", "classifier": CNN}}]}],
    "discriminator projected": [{"features": CNN}],
    "reward class_log_prob": [{"classifier": CNN}],
    "sampler maskgit": [{"steps": 4}, {"steps": 4, "guidance": {"scale": 2.0}}, {"steps": 12, "temperature": 0.7}],
    "sampler maskbit": [
        {"steps": 1}, {"steps": 4}, {"steps": 12, "guidance": {"scale": 2.0, "ramp": "constant"}, "temperature": 0.7},
    ],
    "sampler maskgen": [
        {"steps": 4}, {"steps": 40, "score_noise": False, "guidance": {"scale": 1.0, "ramp": "constant"}},
        {"steps": 6, "annealing": False, "schedule": "root", "choice_temperature": 1.0},
    ],
    "sampler meissonic": [
        {"steps": 1}, {"steps": 4}, {"steps": 12, "last_choice_temperature": 0.01, "guidance": {"scale": 1.0}},
    ],
    "sampler halton": [
        {"steps": 1}, {"steps": 4, "guidance": {"scale": 1.0}, "randomize": True},
        {"steps": 12, "sharpness": (0.5, 2.0), "power": 2.0, "warmup": 2, "top_k": 3, "randomize": True},
    ],
    "sampler halton_confidence": [{"steps": 4}, {"steps": 12, "schedule": "root", "guidance": {"scale": 2.0}}],
    "sampler theta_trapezoidal": [
        {"steps": 1}, {"steps": 4, "theta": 0.3, "guidance": {"scale": 2.0, "ramp": "linear"}, "temperature": 0.7},
    ],
    "sampler random_order": [{"steps": 4}, {"steps": 4, "guidance": {"scale": 2.0}}],
    "sampler one_step": [{}, {"top_k": 3}, {"top_p": 0.5, "temperature": 2.0}],
    "search tteo": [
        {}, {"candidates": 8, "decode": "soft", "norm_prior": 1.0}, {"optimizer": "sgd", "lr": 0.2},
        {"optimizer": "sgd", "lr": 5, "momentum": 0.9, "nesterov": True, "clip": 0.1, "norm_prior": 0.01, "rows": 3},
        {"optimizer": "normalized", "lr": 0.1, "norm_prior": 0.01, "norm_of": "noise", "patience": 1, "rows": 5},
        {"norm_prior": 0.01, "norm_of": "table", "starts": 1},
    ],
    "search best_of_n": [{}, {"n": 1, "decode": "soft"}, {"n": 5, "rows": 4}],
    "data animals": [{}, {"mirror": False}],
    "data captions": [{"samples": 2000, "held_out": 300}],
    "data caption_pieces": [{"of": {"samples": 2000, "held_out": 300}}],
    "data digits": [{}, {"condition": "digit"}],
    "data folder": [
        {"path": "pictures", "size": 8}, {"path": "pictures", "channels": 1, "held_out": 0.4},
        {"path": "pictures", "size": 8, "in_memory": False, "mirror": True, "crop": "center"},
    ],
    "data prompts": [{"path": "prompts.jsonl", "held_out": 0.3}, {"path": "styles", "group": "file", "held_out": 0.0}],
    "data labels": [{"classes": 12}, {"classes": 12, "balanced": True}],
    "data tokens": [{"path": "cache", "size": 8}, {"path": "cache", "size": 8, "verify": True}],
    "data webdataset": [{"path": "tars", "size": 8}, {"path": "tars", "channels": 1, "mirror": True}],
    "reward aesthetic": [{"tiny": True, "fresh": True, "clip": {"use": "clip_image", "tiny": True, "fresh": True}}],
    "metric clip_score": [{"network": {"use": "clip_score", "tiny": True, "fresh": True, "weights": None}}],
    "metric mean_reward": [{"reward": {"use": "class_log_prob", "classifier": CNN}}],
    "metric hpsv2_benchmark": [{"reward": {"use": "class_log_prob", "classifier": CNN}}],
    "metric geneval": [{"command": STANDIN}],
    "metric command": [{"command": STANDIN}, {"command": STANDIN, "answers": "images"}],
} | {
    f"metric {name}": [{"features": CNN}]
    for name in ("frechet", "inception_score", "precision_recall", "density_coverage", "accuracy")
}  # fmt: skip

ELSEWHERE = (
    "teacher compact_text",
    "features captioner",
    "reward caption_score",
    "reward caption_correct",
    "metric caption_accuracy",
)
"""Those that read captions: `test_contracts_captions.py`."""
SLOW = ("features inception",)
"""At its one size it takes a minute."""


def components() -> dict[str, str]:
    """`kind name` -> `module:Class`."""
    groups = {group.removeprefix("softdimo."): entries for group, entries in PROJECT["entry-points"].items()}
    return {f"{kind} {name}": target for kind, entries in groups.items() for name, target in entries.items()}


def check(kind: str, spec: Spec, here: Context, cond: Cond | None = None) -> None:
    """The contract of one kind, under these conditions where a network needs some."""
    if kind in ("metric", "data"):
        {"metric": testing.check_metric, "data": testing.check_data}[kind](spec.build)
        return
    torch.manual_seed(0)
    built = spec.build(here)
    if kind == "discriminator":
        assert built.space == spec.space, "settings and network must name one space"
    checks: dict[str, Callable[[], None]] = {
        "teacher": lambda: testing.check_teacher(built, cond=cond),
        "tokenizer": lambda: testing.check_tokenizer(built, here.image, cond),
        "text_encoder": lambda: testing.check_text_encoder(built),
        "features": lambda: testing.check_features(built, here.image),
        "reward": lambda: testing.check_reward(built),
        "discriminator": lambda: testing.check_discriminator(built, here),
        "sampler": lambda: testing.check_sampler(built, here),
        "search": lambda: testing.check_search(built, here),
        "loss": lambda: testing.check_loss(built, here),
    }
    checks[kind]()


@pytest.mark.parametrize(
    ("what", "settings"),
    [
        pytest.param(what, settings, id=f"{what.replace(' ', '-')}-{i}", marks=[pytest.mark.slow] * (what in SLOW))
        for what in components()
        if what not in ELSEWHERE
        for i, settings in enumerate(CASES.get(what, [{"smoke": True}]))
    ],
)
def test_it_keeps_its_contract(what, settings, tmp_path, monkeypatch):
    kind, name = what.split()
    if name == "pixels":
        pytest.importorskip("timm")
    if name in FILES:
        FILES[name](tmp_path)
        monkeypatch.chdir(tmp_path)
    target = components()[what]
    module, _, cls = target.partition(":")
    settings = dict(settings)
    here, smoke = replace(testing.context(), **settings.pop("context", {})), settings.pop("smoke", False)
    encodings = settings.pop("encoded", None)
    cond = None if encodings is None else testing.encoded(4, **encodings)
    spec = getattr(importlib.import_module(module), cls).model_validate({"use": name, **settings})
    check(kind, spec.smoke() if smoke else spec, here, cond)


def pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, n in (("ant", 9), ("bee", 6), ("cow", 5)):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(n):
            image = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
            image.save(folder / "pictures" / name / f"{i}.png")
    return folder / "pictures"


def tars(folder: Path) -> None:
    """The same pictures in a tar."""
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / "0.tar", "w") as tar:
        for i, path in enumerate(sorted(pictures(folder).rglob("*.png"))):
            tar.add(path, f"{i}.png")
            label = path.with_suffix(".cls")
            label.write_text(str("abc".index(path.parent.name[0])))
            tar.add(label, f"{i}.cls")


def prompts(folder: Path) -> None:
    """A benchmark of two styles, and records."""
    (folder / "styles").mkdir()
    for style in ("anime", "photo"):
        (folder / "styles" / f"{style}.json").write_text(json.dumps([f"{style} {i}" for i in range(6)]))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"a {i}"}) + "\n" for i in range(12)))


FILES: dict[str, Callable[[Path], object]] = {
    "prompts": prompts,
    "folder": pictures,
    "webdataset": tars,
    "tokens": lambda folder: caches.make(caches.write(folder), folder / "cache"),
}
"""What some data sets read."""


def test_every_kind_is_checked_and_every_case_is_of_something():
    assert {what.split()[0] for what in components()} == set(registry.KINDS)
    assert all(hasattr(testing, f"check_{kind}") for kind in registry.KINDS)
    assert {*CASES, *ELSEWHERE} <= set(components())
