"""What the ranks of the distributed tests do, and one process that draws the random numbers of several ranks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from softdimo import recipe as recipes
from softdimo.build import Components
from softdimo.engine.hardware import launch
from softdimo.engine.loop import Loop
from softdimo.engine.rng import seed_all
from softdimo.engine.sharding import whole
from softdimo.engine.train import Training
from softdimo.errors import Interrupted
from softdimo.kinds import Batch, Cond
from softdimo.runs.lineage import cache_name
from softdimo.runs.ranks import Ranks
from tests import tiny

CPU = ("hardware.accelerator=cpu", "hardware.threads=1")
STUDENT = """
title: All terms
base: dimo.yaml
train:
  batch_size: 4
  player: {accumulate: 2}
  terms:
    - {use: dimo, normalization: mean_masked, player: {optimizer: {lr: 1e-3}}}
    - use: gan
      weight: {ratio: 0.5}
      r1: 0.1
      discriminator: {use: teacher_features, hidden: 8}
      player: {every: 2, accumulate: 2, clip: 0.01, optimizer: {lr: 1e-3}}
    - use: reward
      rewards:
        - {reward: {use: class_log_prob, classifier: {use: cnn, width: 4, features: 4, weights: {recipe: judge.yaml}}}}
"""


def write(root: Path) -> Path:
    """Recipes with every term, and finished runs of what they rest on; returns the student's."""
    tiny.write(root)
    for seed, name in enumerate(("tokenizer", "teacher", "judge")):
        loaded = recipes.load(root / f"{name}.yaml")
        tiny.finish(loaded, root / "runs" / "cache" / cache_name(loaded), seed + 11)
    (root / "all.yaml").write_text(STUDENT, encoding="utf-8")
    return root / "all.yaml"


def training(recipe: Path, overrides: Sequence[str], folder: Path) -> Training:
    """A training as `softdimo run` makes it, with its weights from the finished runs."""
    loaded = recipes.load(recipe, (*CPU, *overrides))
    fabric = launch(loaded.recipe.hardware)
    runs = recipe.parent / "runs" / "cache"
    parts = Components(loaded.recipe, fabric.device, lambda ref: runs / cache_name(recipes.load_ref(ref)))
    return Training(parts, fabric, folder, "recipe", "test")


class AsRanks(TorchFunctionMode):
    """The random numbers that `generator` gives for a batch are those that the ranks would draw for their shares."""

    def __init__(self, generator: torch.Generator, ranks: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.generator, self.ranks = generator, ranks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not self.generator:
            return func(*args, **kwargs)
        parts = [kwargs | {"generator": each} for each in self.ranks]
        if isinstance(args[0], Tensor):
            for tensor, part in zip(args[0].chunk(len(parts)), parts, strict=True):
                func(tensor, *args[1:], **part)
            return args[0]
        first, shape = args[: func is torch.randint], args[func is torch.randint :]
        n, *rest = shape[0] if isinstance(shape[0], tuple | torch.Size) else shape
        assert n % len(parts) == 0
        return torch.cat([func(*first, (n // len(parts), *rest), **part) for part in parts])


def plain(value: Any) -> Any:
    """A state with whole tensors, as copies."""
    value = whole(value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.detach().clone() if isinstance(value, Tensor) else value


def trajectory(recipe: Path, overrides: Sequence[str], iterations: int, ranks: int = 1, double: bool = False) -> Any:
    """Logs of every iteration, and the state at the end, of this rank, or of one process that draws for `ranks`.

    With `double`, frozen networks are in float64 too, so that the order of sums hardly matters.
    """
    train = training(recipe, overrides, recipe.parent)
    seed = train.parts.recipe.seed * 1_000_003
    rng = torch.Generator().manual_seed(seed + train.fabric.global_rank)
    stream = train.stream()
    if double:
        train.algorithm(rng)  # makes them
        for net in train.parts._made.values():
            if isinstance(net, nn.Module):
                net.double()
    algorithm = train.algorithm(rng)
    logs = []
    with AsRanks(rng, [torch.Generator().manual_seed(seed + r) for r in range(ranks)] if ranks > 1 else [rng]):
        for iteration in range(iterations):
            step = algorithm.step(iteration, next(stream))
            logs.append({k: float(torch.as_tensor(v).detach()) for k, v in step.items()})
    return logs, plain(algorithm.state_dict())


class Stopped:
    """A stream that sends this process SIGTERM with a batch, as if it came during the iteration."""

    def __init__(self, stream: Any, at: int | None) -> None:
        self.stream, self.at, self.n = stream, at, 0

    def __iter__(self) -> Stopped:
        return self

    def __next__(self) -> Batch:
        if self.n == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.n += 1
        batch: Batch = next(self.stream)
        return batch

    def state_dict(self) -> Any:
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)


def loop(recipe: Path, overrides: Sequence[str], folder: Path, stop: int | None = None, resume: bool = False) -> Any:
    """Train six iterations and export; the state at the end. With `stop`, rank 1 alone gets SIGTERM in that iteration,
    and the message is returned."""
    train = training(recipe, overrides, folder)
    rank = train.fabric.global_rank
    rng = torch.Generator().manual_seed(rank)
    algorithm = train.algorithm(rng)
    seed_all(rank)
    stream = Stopped(train.stream(), stop if rank == 1 else None)
    run = Loop(algorithm, stream, folder, train.fabric, rng, "recipe", "test", 6, 8, log_every=4)
    try:
        run.run(resume)
    except Interrupted as error:
        return str(error)
    train._export(algorithm)
    return plain(algorithm.state_dict()) | {"rng": rng.get_state(), "torch": torch.get_rng_state()}


def dealt(n: int) -> Any:
    """Every rank's items of `n` places as all ranks get them: place, whether two tensors are still one, condition."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    tensor = {place: torch.full((2,), place) for place in range(n)}
    mine = ((place, [tensor[place]] * 2, Cond(tensor[place], ("prompt",))) for place in ranks.mine(range(n)))
    found = [(p, a is b, int(cond.labels[0]), cond.prompts) for p, (a, b), cond in ranks.in_order(mine)]
    return found, ranks.agree(ranks.rank)


def each(function: Callable[..., Any], *calls: Sequence[Any]) -> list[Any]:
    """Several calls in one process, whose start takes longer than they do."""
    return [function(*call) for call in calls]


def tensors(value: Any, path: str = "") -> dict[str, Tensor]:
    """Tensors and numbers of a nested state, by path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for name, inner in items for k, v in tensors(inner, f"{path}/{name}").items()}
    return {path: torch.as_tensor(value)} if isinstance(value, Tensor | int | float) else {}
