import pytest
import torch

from softdimo import spec
from softdimo.errors import TrainingError
from softdimo.math.init import Init, Warmup
from softdimo.math.rollout import rollout
from softdimo.math.soft import Relaxation
from softdimo_plugins.losses.dimo import DiMO
from tests.engine.tiny import batch, context, distillation, players


class Reached:
    """Sum of the absolute gradients that arrive at a module's parameters."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.total = 0.0
        for p in module.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self.add)

    def add(self, p: torch.Tensor) -> None:
        assert p.grad is not None
        self.total += float(p.grad.abs().sum())


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    return {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


def test_an_iteration_moves_every_player_and_never_the_teacher() -> None:
    ctx = context()
    algorithm = distillation(ctx, torch.Generator().manual_seed(0))
    assert ctx.teacher is not None
    teacher, student = snapshot(ctx.teacher), snapshot(algorithm.network)
    critics = {e.name: snapshot(e.critic.raw) for e in algorithm.terms if e.critic is not None}
    logs = algorithm.step(0, batch())
    assert not changed(teacher, ctx.teacher)
    moved = changed(student, algorithm.network)
    assert moved
    assert not any(name.startswith(ctx.teacher.frozen()) for name in moved)
    for entry in algorithm.terms:
        assert entry.critic is not None
        assert changed(critics[entry.name], entry.critic.raw)
    assert {"dimo/loss", "dimo/divergence", "gan/loss", "gan/real", "gan/fake", "gan/grad_at_logits"} <= set(logs)
    assert all(p.grad is None for p in ctx.teacher.parameters())


def test_the_generators_turn_gives_critics_no_gradient() -> None:
    ctx = context()
    algorithm = distillation(ctx, torch.Generator().manual_seed(0))
    student, critics = Reached(algorithm.network), []
    for entry in algorithm.terms:
        entry.critic = None
        assert entry.term.critic is not None
        critics.append(Reached(entry.term.critic))
    algorithm.step(0, batch())
    assert student.total > 0
    assert [critic.total for critic in critics] == [0, 0]


def test_the_noise_of_an_iteration_is_the_warmups(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = distillation(context(), torch.Generator().manual_seed(0))
    algorithm.init = Init(sigma=0.8, warmup=Warmup(over=4))
    seen: list[float] = []
    perturb = Init.perturb
    monkeypatch.setattr(Init, "perturb", lambda init, *args: seen.append(init.sigma) or perturb(init, *args))
    for iteration in (0, 1, 3, 9):
        algorithm.step(iteration, batch())
    assert seen == pytest.approx([0, 0.2, 0.6, 0.8])


def test_gradients_go_with_the_step_and_wait_while_they_accumulate() -> None:
    algorithm = distillation(context(), torch.Generator().manual_seed(0))
    turns = [algorithm.generator, *(e.critic for e in algorithm.terms if e.critic is not None)]
    algorithm.step(0, batch())
    assert all(p.grad is None for player in turns for p in player.raw.parameters())
    algorithm.generator.settings = algorithm.generator.settings.model_copy(update={"accumulate": 2})
    algorithm.step(1, batch())
    assert any(p.grad is not None for p in algorithm.network.parameters())
    algorithm.step(2, batch())
    assert all(p.grad is None for p in algorithm.network.parameters())


def test_the_critics_turn_gives_the_student_no_gradient() -> None:
    ctx = context()
    algorithm = distillation(ctx, torch.Generator().manual_seed(0), lead=10)
    student = Reached(algorithm.network)
    algorithm.step(0, batch())
    assert student.total == 0
    assert algorithm.ema.updates == 0


def test_dimo_gradient_at_logits_is_g_over_b_at_masked_units_only() -> None:
    ctx = context()
    assert ctx.teacher is not None
    rng = torch.Generator().manual_seed(3)
    roll, _ = rollout(ctx.copy_teacher(), batch().cond, Init(), rng, Relaxation())
    term = DiMO(use="dimo", share_t=True).build(ctx)
    with torch.no_grad():
        for p in term.auxiliary.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
    loss, _ = term.generator(roll)
    (gradient,) = torch.autograd.grad(loss, roll.logits)
    hit = gradient.abs().sum(-1) > 0
    assert 0 < int(hit.sum()) < hit.numel()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros_like(gradient.sum(-1)), atol=1e-6, rtol=0)


def test_gradient_is_the_weighted_sum_of_the_terms() -> None:
    ctx = context()
    one = distillation(ctx, torch.Generator().manual_seed(0), gan_weight=0.0)
    two = distillation(ctx, torch.Generator().manual_seed(0), gan=False)
    one.step(0, batch())
    # the same draws up to the GAN's mask: with weight 0 the student's gradient is Di[M]O's alone
    two.step(0, batch())
    for p, q in zip(one.network.parameters(), two.network.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_ratio_weight_reaches_its_target() -> None:
    ctx = context()
    ratio = spec.GradientRatio(ratio=0.25, of="dimo", smoothing=0.0)
    algorithm = distillation(ctx, torch.Generator().manual_seed(0), gan_weight=ratio)
    for i in range(3):
        logs = algorithm.step(i, batch(seed=i))
        reached = float(logs["gan/weight"]) * float(logs["gan/grad_at_logits"])
        reference = next(e.norm for e in algorithm.terms if e.name == "dimo")
        assert reached == pytest.approx(0.25 * reference, rel=1e-4)


def test_cadence_and_accumulation() -> None:
    ctx = context()
    algorithm = distillation(ctx, torch.Generator().manual_seed(0), generator=players(every=2, accumulate=2), gan=False)
    updates = []
    for i in range(8):
        algorithm.step(i, batch(seed=i))
        updates.append(algorithm.ema.updates)
    assert updates == [0, 0, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(("switch", "expected"), [({}, 9), ({"share_t": True}, 8), ({"fresh_samples": True}, 10)])
def test_network_passes_per_iteration(switch: dict[str, bool], expected: int) -> None:
    """Forward 1, backward 2; teacher guided (2), re-using x_theta for psi: 9, and 8 when psi's forward is shared.

    The public code draws anew for psi: 10.
    """
    ctx = context()
    spec = DiMO(use="dimo", player=players(), **switch)  # type: ignore[arg-type]
    algorithm = distillation(ctx, torch.Generator().manual_seed(0), gan=False, dimo=spec)
    assert 3 + sum(spec.passes().values()) == expected
    assert ctx.teacher is not None
    passes = 0.0
    n = 6

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
        nonlocal passes
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
        passes += len(args[0]) / n * (3 if trains else 1)

    auxiliary = algorithm.terms[0].term.critic
    assert auxiliary is not None
    for net in (ctx.teacher, algorithm.network, auxiliary):
        net.register_forward_hook(count)
    algorithm.step(0, batch(n))
    assert passes == expected


@pytest.mark.parametrize("dropout", [False, True])
def test_the_students_dropout_acts_when_asked_for(dropout: bool) -> None:
    algorithm = distillation(
        context(), torch.Generator().manual_seed(0), gan=False, dimo=DiMO(use="dimo", fresh_samples=True)
    )
    algorithm.dropout = dropout
    modes: list[bool] = []
    algorithm.network.register_forward_hook(lambda module, args, out: modes.append(module.training))
    algorithm.step(0, batch())
    assert modes == [dropout, dropout]


def test_a_term_without_finite_loss_stops_with_its_name() -> None:
    ctx = context()
    algorithm = distillation(ctx, torch.Generator().manual_seed(0), gan=False)
    broken = lambda roll: (roll.logits.sum() * float("nan"), {})  # noqa: E731
    algorithm.terms[0].term.generator = broken  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="`dimo` is nan at iteration 7"):
        algorithm.step(7, batch())


def test_a_term_whose_gradient_is_not_finite_stops_with_its_name() -> None:
    ctx = context()
    algorithm = distillation(ctx, torch.Generator().manual_seed(0), gan=False)
    steep = lambda roll: ((roll.logits - roll.logits.detach()).square().sum().sqrt(), {})  # noqa: E731  (0, slope 0 / 0)
    algorithm.terms[0].term.generator = steep  # type: ignore[method-assign]
    before = snapshot(algorithm.network)
    with pytest.raises(TrainingError, match="`dimo` gives the student's logits a gradient that is not finite"):
        algorithm.step(0, batch())
    assert not changed(before, algorithm.network)


def test_a_term_that_misses_the_logits_is_named() -> None:
    ctx = context()
    algorithm = distillation(ctx, torch.Generator().manual_seed(0), gan=False)
    algorithm.terms[0].term.generator = lambda roll: (torch.ones(()), {})  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="`dimo` does not depend"):
        algorithm.step(0, batch())
