"""A tiny teacher, tokens and players for the engine's tests."""

import torch
from lightning_fabric import Fabric

from softdimo import spec
from softdimo.engine.algorithm import Distillation, Entry
from softdimo.engine.ema import EMA
from softdimo.engine.player import Player
from softdimo.kinds import Batch, Cond, Context, ImageShape, TokenShape
from softdimo.math.init import Init
from softdimo.math.soft import Relaxation
from softdimo_plugins.discriminators.teacher_features import TeacherFeatures
from softdimo_plugins.losses.dimo import DiMO
from softdimo_plugins.losses.gan import GANTerm
from softdimo_plugins.teachers.compact import Compact

SHAPE = TokenShape(2, 3, 2, 5)


def context(shape: TokenShape = SHAPE) -> Context:
    torch.manual_seed(0)
    bare = Context(ImageShape(1, 4, 6), ("a", "b", "c"), make=lambda s: s.build(bare), tokens=shape)
    teacher = Compact(width=16, depth=2, heads=2).build(bare).requires_grad_(False).eval()
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return Context(bare.image, bare.classes, bare.make, tokens=shape, teacher=teacher)


def batch(n: int = 6, seed: int = 0, shape: TokenShape = SHAPE) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(shape.V, (n, shape.L, shape.G), generator=rng)
    return Batch(Cond(torch.randint(3, (n,), generator=rng)), tokens=tokens)


def players(lr: float = 1e-2, **changes: object) -> spec.Player:
    return spec.Player(optimizer=spec.Optimizer(lr=lr, betas=(0.0, 0.99)), **changes)  # type: ignore[arg-type]


class Endless:
    """Batches 0, 1, 2, ... with a position that can be saved."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> "Endless":
        return self

    def __next__(self) -> Batch:
        self.at += 1
        return batch(seed=self.at)

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def fabric() -> Fabric:
    made = Fabric(accelerator="cpu", devices=1)
    made.launch()
    return made


def gan_term(ctx: Context) -> GANTerm:
    from softdimo_plugins.losses.gan import GAN

    settings = GAN.model_construct(
        use="gan", name="gan", weight=1.0, loss="non_saturating", ratio=(0.0, 0.95), r1=0.1, r1_noise=0.1,
        player=players(), discriminator=None,
    )  # fmt: skip
    assert ctx.teacher is not None
    return GANTerm(settings, TeacherFeatures(hidden=8).build(ctx), ctx.teacher, None)  # type: ignore[arg-type]


def distillation(
    ctx: Context, rng: torch.Generator, generator: spec.Player | None = None, dimo: DiMO | None = None,
    gan: bool = True, horizon: int = 50, lead: int = 0, gan_weight: float | spec.GradientRatio = 2.0,
) -> Distillation:  # fmt: skip
    fab = fabric()
    settings = dimo or DiMO(use="dimo", name="dimo", player=players())
    terms = [Entry("dimo", settings.build(ctx), 1.0)]
    if gan:
        terms.append(Entry("gan", gan_term(ctx), gan_weight))
    for entry in terms:
        assert entry.term.critic is not None
        assert entry.term.player is not None
        entry.critic = Player(f"{entry.name}'s critic", entry.term.critic, entry.term.player, horizon, fab)
    student = ctx.copy_teacher()
    player = Player("generator", student, generator or players(), horizon, fab)
    return Distillation(player, EMA(student, (10.0, 50.0)), terms, Init(), Relaxation(), None, rng, fab, lead)
