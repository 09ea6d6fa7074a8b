"""What `speed.py` compares: jobs by their sizes, and the loops that train them, with the functions of every phase."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from instruments import Watched, auxiliary_phase
from published_loop import PublishedLoop
from torch import nn
from torch._functorch import config as functorch

from softdimo import recipe
from softdimo.build import Components
from softdimo.engine import products
from softdimo.engine.algorithm import Distillation, Entry
from softdimo.engine.ema import EMA
from softdimo.engine.hardware import launch
from softdimo.engine.mixed import lighten, lightens
from softdimo.engine.player import Player
from softdimo.kinds import Batch, Cond, Context, ImageShape, TokenShape
from softdimo.math import rollout
from softdimo.math.divergence import Divergence
from softdimo.math.init import Init
from softdimo.math.schedules import Schedule
from softdimo.recipe.model import Ema, Hardware, Train
from softdimo.spec import Optimizer
from softdimo.spec import Player as PlayerSettings
from softdimo_plugins.losses import dimo
from softdimo_plugins.teachers.compact import Compact
from softdimo_plugins.teachers.maskgit import MaskGit, MaskGitTeacher

RECIPE = Path(__file__).parent.parent / "recipes" / "animals_dimo.yaml"
PUBLISHED, DROPOUT, PUBLISHED16 = "published loop", "published loop, dropout", "published loop, bf16"
OURS, SHARED, OURS16, SHARED16 = "softdimo", "softdimo, share_t", "softdimo, bf16", "softdimo, bf16, share_t"
COMPILED16 = "softdimo, bf16, compiled"
HALF_LIFE = 6931.1
"""Of an EMA with decay 0.9999."""


@dataclass(frozen=True)
class Job:
    """A distillation: sizes, and settings as in a recipe."""

    teacher: Compact | MaskGit
    tokens: TokenShape
    classes: int
    train: Train
    init: Init
    schedule: Schedule


def maskgit(quick: bool, batch: int = 2, grid: int = 16, depth: int = 24) -> Job:
    """The sizes and settings of the published MaskGit run in fp32, at a small batch; `quick` makes the sizes tiny."""
    player = PlayerSettings(optimizer=Optimizer(lr=1e-5, warmup=100))
    train = Train(
        iterations=30_000,
        batch_size=batch,
        player=player,
        ema=Ema(half_lives=(HALF_LIFE,)),
        terms=(
            dimo.DiMO(use="dimo", name="dimo", label_smoothing=0.1, player=player.model_copy(update={"clip": None})),
        ),
    )
    if quick:
        net = MaskGit(use="maskgit", width=32, depth=2, heads=2, mlp=64, classes=10, fresh=True)
        return Job(net, TokenShape(4, 4, 1, 16), 10, train, Init(), "arccos")
    net = MaskGit(use="maskgit", depth=depth, fresh=True)
    return Job(net, TokenShape(grid, grid, 1, 1024), 1000, train, Init(), "arccos")


def animals() -> Job:
    """The embedded job as its recipe says."""
    loaded = recipe.load(RECIPE).recipe
    parts = Components(loaded)
    assert isinstance(loaded.teacher, Compact)
    assert loaded.train is not None
    assert parts.tokens is not None
    return Job(loaded.teacher, parts.tokens, len(parts.data.classes), loaded.train, loaded.init, loaded.schedule)


@dataclass
class Loop:
    """One way of training: a step, its networks, and which functions make up its phases."""

    step: Callable[[], object]
    networks: dict[str, nn.Module]
    watched: list[Watched]


def build(job: Job, names: tuple[str, ...]) -> dict[str, Loop]:
    """Loops by name, all from the same random weights.

    The published ones share networks and optimizers, and so do those of softdimo in one precision.
    """
    bare = Context(ImageShape(3, 1, 1), tuple(map(str, range(job.classes))), _no_parts, job.tokens)

    def context(dropout: bool) -> Context:
        off = {} if dropout or isinstance(job.teacher, Compact) else {"dropout": 0.0}
        torch.manual_seed(0)
        teacher = job.teacher.model_copy(update=off).build(bare).requires_grad_(False).eval()
        return replace(bare, teacher=teacher, schedule=job.schedule)

    loops: dict[str, Loop] = {}
    if {PUBLISHED, DROPOUT, PUBLISHED16} & set(names):
        loops |= published(context(True), job)
    if {OURS, SHARED} & set(names):
        loops |= dict(zip((OURS, SHARED), ours(context(False), job, "32-true"), strict=True))
    if {OURS16, SHARED16} & set(names):
        loops |= dict(zip((OURS16, SHARED16), ours(context(False), job, "bf16-mixed"), strict=True))
    if COMPILED16 in names:
        loops[COMPILED16], _ = ours(context(False), job, "bf16-mixed", compiled=True)
    return {name: loops[name] for name in names}


def _no_parts(spec: object) -> Any:
    raise NotImplementedError(f"these jobs have no {spec}")


def published(context: Context, job: Job) -> dict[str, Loop]:
    """The published loop: without its dropout, with it, and under autocast."""
    assert isinstance(context.teacher, MaskGitTeacher)
    assert isinstance(job.teacher, MaskGit)
    decay = 0.5 ** (1 / HALF_LIFE)
    loop = PublishedLoop(
        context.teacher, job.teacher, job.train.batch_size, job.train.player.optimizer.lr, decay,
        r_init=job.init.r_init,
    )  # fmt: skip
    networks: dict[str, nn.Module] = {"teacher": loop.teacher, "student": loop.student, "auxiliary": loop.auxiliary}
    watched: list[Watched] = [
        (loop.student, "forward", "generator forward"),
        (loop.teacher, "forward", "teacher"),
        (loop.auxiliary, "forward", auxiliary_phase),
        (loop, "update", lambda player, loss: "auxiliary trained" if player else "generator backward"),
        (loop, "cross_entropy", "auxiliary trained"),
        *((optimizer, "step", "optimizer steps") for optimizer in loop.optimizers),
        (loop, "average", "EMA"),
        (loop, "gradient", "divergence"),
        (loop, "distance", "divergence"),
        (loop, "masked", "masking"),
        (loop, "sample", "sampling"),
    ]

    def step(dropout: bool, bf16: bool) -> object:
        loop.dropout(dropout)
        loop.bf16 = bf16
        return loop.step()

    return {
        PUBLISHED: Loop(partial(step, False, False), networks, watched),
        DROPOUT: Loop(partial(step, True, False), networks, watched),
        PUBLISHED16: Loop(partial(step, False, True), networks, watched),
    }


def ours(
    context: Context, job: Job, precision: Literal["32-true", "bf16-mixed"], compiled: bool = False
) -> tuple[Loop, Loop]:
    """The engine as a recipe with these settings builds it, without and with `share_t`; no dropout."""
    hardware = Hardware(accelerator="cpu", precision=precision)
    fabric = launch(hardware)
    assert context.teacher is not None
    if products.worthwhile():
        products.quicken(context.teacher)
    (spec,) = job.train.terms
    assert isinstance(spec, dimo.DiMO)
    term, horizon = spec.build(context), job.train.iterations
    assert term.critic is not None
    student = context.copy_teacher()
    if lightens(hardware):
        lighten(context.teacher)
    limit = job.train.player.clip if precision == "bf16-mixed" else None  # as the published code, which clips psi never
    critic = Player("psi", term.critic, spec.player, horizon, fabric)
    generator = Player("generator", student, job.train.player.model_copy(update={"clip": limit}), horizon, fabric)
    ema = EMA(student, job.train.ema.half_lives, job.train.ema.warmup)
    rng, done = torch.Generator().manual_seed(0), itertools.count()
    networks = {"teacher": term.teacher, "student": student, "auxiliary": term.critic}
    if compiled:
        functorch.donated_buffer = False  # as `Training` does
        for net in networks.values():
            for layer in net.layers():  # type: ignore[operator]
                layer.compile()
    watched: list[Watched] = [
        (student, "forward", "generator forward"),
        (term.teacher, "forward", "teacher"),
        (term.critic, "forward", auxiliary_phase),
        (generator, "turn", "generator backward"),
        (critic, "turn", "auxiliary trained"),
        (dimo.DiMOTerm, "critic_loss", "auxiliary trained"),
        (generator.optimizer, "step", "optimizer steps"),
        (critic.optimizer, "step", "optimizer steps"),
        (nn.utils, "get_total_norm", "gradient norm"),
        (ema, "update", "EMA"),
        (Divergence, "gradient", "divergence"),
        (dimo, "surrogate", "divergence"),
        (Distillation, "_at_logits", "divergence"),
        (Divergence, "value", "values for the log"),
        (dimo, "entropy", "values for the log"),
        (Distillation, "_weigh", "values for the log"),
        (dimo, "remask", "masking"),
        (Init, "tokens", "masking"),
        (rollout, "categorical", "sampling"),
    ]

    def loop(share_t: bool) -> Loop:
        settings = spec.model_copy(update={"share_t": share_t})
        entry = Entry(spec.name, dimo.DiMOTerm(settings, term.teacher, term.critic, job.schedule), 1.0, critic)
        made = Distillation(generator, ema, [entry], job.init, job.train.relaxation, None, rng, fabric)

        def step() -> object:
            labels = torch.randint(job.classes, (job.train.batch_size,), generator=rng)
            return made.step(next(done), Batch(Cond(labels)))

        return Loop(step, networks, watched)

    return loop(False), loop(True)
