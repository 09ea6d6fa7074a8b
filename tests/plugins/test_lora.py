"""The auxiliary as adapters on the frozen teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from softdimo.engine.algorithm import Distillation
from softdimo.engine.train import Training
from softdimo.errors import PluginError, WeightsError
from softdimo.files import read_weights
from softdimo.kinds import Cond, Output, Teacher, TokenShape
from softdimo.math.guidance import Guidance
from softdimo.testing import TinyTeacher, check_loss
from softdimo.testing import context as contract_context
from softdimo_plugins.lora import Lora, LoraTeacher
from softdimo_plugins.losses.dimo import DiMO, DiMOTerm
from tests import ranks
from tests.engine import distributed
from tests.engine.tiny import batch, context, distillation, players

RANK = 3


def lora(**settings: object) -> Lora:
    return Lora(use="lora", rank=RANK, **settings)  # type: ignore[arg-type]


def spec(**settings: object) -> DiMO:
    return DiMO(use="dimo", name="dimo", player=players(), auxiliary=lora(), **settings)  # type: ignore[arg-type]


def made(teacher: Teacher | None = None, **settings: object) -> tuple[Teacher, LoraTeacher]:
    """A frozen teacher and its adapted twin."""
    found = teacher if teacher is not None else context().teacher
    assert found is not None
    found.requires_grad_(False).eval()
    return found, LoraTeacher(found, lora(**settings)).eval()


def tiny(**members: object) -> TinyTeacher:
    torch.manual_seed(0)
    return type("Variant", (TinyTeacher,), members)()  # type: ignore[no-any-return]


def asked(net: Teacher, n: int = 4) -> list[Tensor]:
    """Everything that a network answers to one masked batch."""
    tokens = batch(n, shape=net.shape).tokens
    assert tokens is not None
    mask = tokens % 2 == 0
    e, cond = net.embed(torch.where(mask, net.shape.V, tokens)), Cond(torch.arange(n) % 3)
    probs = torch.randn(*tokens.shape, net.shape.V, generator=torch.Generator().manual_seed(1)).softmax(-1)
    out = net(e, cond, at=mask, features=(0, net.depth - 1))
    whole = net(e, net.null(cond)).logits
    return [e, net.soften(probs, mask), net.table_rms(), out.logits, *out.features, whole]


def stirred(net: LoraTeacher) -> LoraTeacher:
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=rng))
    return net


def frozen_state(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("make", [lambda: context().teacher, tiny], ids=["compact", "tiny"])
def test_at_first_it_is_the_teacher_bit_for_bit(make: Callable[[], Teacher]) -> None:
    teacher, psi = made(make())
    assert all(torch.equal(a, b) for a, b in zip(asked(psi), asked(teacher), strict=True))
    assert [type(a) for a in psi.layers()] != []


def test_only_the_adapters_are_its_parameters_and_its_state() -> None:
    teacher, psi = made()
    named = dict(psi.named_parameters())
    assert set(psi.state_dict()) == set(named)
    assert all(name.startswith("adapters.") and p.requires_grad for name, p in named.items())
    linears = {n: m for n, m in teacher.named_modules() if isinstance(m, nn.Linear)}
    assert len(named) == 2 * len(linears) == 2 * (4 * 2 + 1)
    assert sum(p.numel() for p in named.values()) == sum(
        RANK * (m.in_features + m.out_features) for m in linears.values()
    )
    assert not {id(p) for p in named.values()} & {id(p) for p in teacher.parameters()}


def test_the_weights_inside_are_the_teachers_own() -> None:
    teacher, psi = made()
    before = asked(psi)
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(1.5)
    after = asked(psi)
    assert all(torch.equal(a, b) for a, b in zip(after, asked(teacher), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (1.5, 0.5)])
def test_it_equals_a_copy_with_the_products_added_to_its_weights(alpha: float | None, scale: float) -> None:
    teacher, psi = made(alpha=alpha)
    stirred(psi)
    merged = copy.deepcopy(teacher)
    with torch.no_grad():
        for name, layer in merged.named_modules():
            if isinstance(layer, nn.Linear):
                state, key = psi.state_dict(), "adapters." + name.replace(".", "/")
                layer.weight += scale * state[f"{key}.up"] @ state[f"{key}.down"]
    for a, b in zip(asked(psi), asked(merged), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(asked(psi)[-1], asked(teacher)[-1], atol=1e-2)


def test_gradients_reach_the_adapters_alone() -> None:
    teacher, psi = made()
    asked(psi)[-1].square().sum().backward()
    for name, p in psi.named_parameters():
        assert p.grad is not None
        assert bool(p.grad.any()) == name.endswith(".up"), name  # A is behind B, which is zero
    assert all(p.grad is None for p in teacher.parameters())
    psi.zero_grad()
    stirred(psi)
    asked(psi)[-1].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in psi.parameters())


def test_what_the_teacher_keeps_frozen_has_no_adapter() -> None:
    class Tied(TinyTeacher):
        def __init__(self) -> None:
            super().__init__(TokenShape(2, 3, 1, 7))
            self.tied = nn.Linear(self.width, 8, bias=False)
            self.tied.weight = nn.Parameter(self.table[0].detach().clone())
            self.same = nn.Linear(self.width, 8, bias=False)
            self.same.weight = self.tied.weight

        def forward(self, e: Tensor, cond: Cond, at: Tensor | None = None, features: object = ()) -> Output:
            out = super().forward(e, cond, None, features)  # type: ignore[arg-type]
            logits = out.logits + (self.same(e) + self.tied(e))[:, :, None, :-1]
            return Output(logits if at is None else logits[at], out.features)

        def frozen(self) -> tuple[str, ...]:
            return ("tied", "mix.1")

    torch.manual_seed(0)
    _, psi = made(Tied())
    assert {name.rpartition(".")[0] for name in psi.state_dict()} == {"adapters.mix/0", "adapters.head"}


def test_a_layer_in_two_places_has_one_adapter_in_both() -> None:
    net = tiny()
    net.mix[1] = net.mix[0]
    teacher, psi = made(net)
    assert set(dict(psi.named_modules())) >= {"adapters.mix/0", "adapters.head"}
    assert len(psi.adapters) == 2
    stirred(psi)
    inside = psi._net[0]
    assert isinstance(inside, TinyTeacher)
    assert inside.mix[0] is inside.mix[1] is not teacher.mix[0]  # type: ignore[index]


def test_modes_reach_the_network_inside_and_never_the_teacher() -> None:
    def forward(self: TinyTeacher, e: Tensor, cond: Cond, at: Tensor | None = None, features: object = ()) -> Output:
        return TinyTeacher.forward(self, self.norm(nn.functional.dropout(e, 0.5, self.training)), cond, at)  # type: ignore[operator]

    net = tiny(forward=forward)
    net.norm = nn.BatchNorm1d(net.shape.L)
    teacher, psi = made(net)
    before, e, cond = frozen_state(teacher), batch(4, shape=net.shape), Cond(torch.arange(4) % 3)
    assert e.tokens is not None
    x = psi.embed(e.tokens)
    assert torch.equal(psi(x, cond).logits, psi(x, cond).logits)
    assert not torch.equal(psi.train()(x, cond).logits, psi(x, cond).logits)
    assert not any(m.training for m in teacher.modules())
    assert same(before, frozen_state(teacher))


class Transformer(TinyTeacher):
    """As many are written: torch's attention reads the weights of its linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(self.width, 2, batch_first=True)

    def forward(self, e: Tensor, cond: Cond, at: Tensor | None = None, features: object = ()) -> Output:
        return super().forward(self.attention(e, e, e)[0], cond, at)


def test_teachers_that_would_pass_the_adapters_by_are_refused() -> None:
    with pytest.raises(PluginError, match=r"`attention` \(MultiheadAttention\).*use auxiliary: copy"):
        made(Transformer())

    def forward(self: TinyTeacher, e: Tensor, cond: Cond, at: Tensor | None = None, features: object = ()) -> Output:
        return Output(nn.functional.linear(e, self.head.weight).unflatten(-1, (2, 5)))

    _, psi = made(tiny(forward=forward))
    with pytest.raises(PluginError, match=r"reads the weight of `head` without calling.*use auxiliary: copy"):
        asked(psi)
    with pytest.raises(PluginError, match="no linear layer that may train"):
        made(tiny(frozen=lambda self: ("mix", "head")))


def test_the_terms_contract() -> None:
    ctx = contract_context()
    for share_t in (False, True):
        check_loss(spec(share_t=share_t, guidance=Guidance(scale=2.0)).build(ctx), ctx)


def test_passes_through_frozen_weights_cost_less() -> None:
    assert spec(share_t=True).passes() == {"teacher at x_t": 2, "auxiliary, queried and trained": 2}
    assert spec().passes() == {"teacher at x_t": 2, "auxiliary, queried": 1, "auxiliary, trained": 2}


@pytest.mark.parametrize("share_t", [False, True])
def test_training_moves_the_adapters_and_never_the_teacher(share_t: bool) -> None:
    ctx = context()
    algorithm = distillation(ctx, torch.Generator().manual_seed(0), gan=False, dimo=spec(share_t=share_t))
    psi, player, teacher = algorithm.terms[0].term.critic, algorithm.terms[0].critic, ctx.teacher
    assert isinstance(psi, LoraTeacher)
    assert player is not None
    assert teacher is not None
    trained = [p for group in player.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in psi.parameters()}
    before, start, first = frozen_state(teacher), frozen_state(psi), asked(psi)
    for i in range(3):
        algorithm.step(i, batch(seed=i))
    assert same(before, frozen_state(teacher))
    assert not any(torch.equal(start[k], v) for k, v in psi.state_dict().items())
    assert not torch.equal(asked(psi)[-1], first[-1])
    assert set(player.state_dict()["weights"]) == set(dict(psi.named_parameters()))
    assert all(p.grad is None for p in teacher.parameters())


def test_it_learns_what_the_student_says() -> None:
    """psi's cross-entropy on the samples of a student that is not the teacher falls towards its own entropy."""
    ctx = context()
    algorithm = distillation(
        ctx, torch.Generator().manual_seed(0), gan=False, dimo=spec(share_t=True), lead=10**6, generator=players()
    )
    with torch.no_grad():
        for p in algorithm.network.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    losses = [float(algorithm.step(i, batch(64, seed=i))["dimo/auxiliary_ce"]) for i in range(60)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_saved_state_continues_bit_for_bit() -> None:
    def play(algorithm: object, rng: torch.Generator, iterations: range) -> dict[str, Tensor]:
        for i in iterations:
            algorithm.step(i, batch(seed=i))  # type: ignore[attr-defined]
        return {k: v.clone() for e in algorithm.terms for k, v in e.term.critic.state_dict().items()}  # type: ignore[attr-defined]

    ctx, rng = context(), torch.Generator().manual_seed(0)
    whole = distillation(ctx, rng, gan=False, dimo=spec(share_t=True))
    play(whole, rng, range(3))
    state, draws = copy.deepcopy(whole.state_dict()), rng.get_state()
    expected = play(whole, rng, range(3, 6))

    again = torch.Generator()
    resumed = distillation(context(), again, gan=False, dimo=spec(share_t=True))
    resumed.load_state_dict(state)
    again.set_state(draws)
    assert same(play(resumed, again, range(3, 6)), expected)


LORA = "train.terms.dimo.auxiliary={use: lora, rank: 2}"


def ready(path: Path, *overrides: str) -> Training:
    """A training whose other networks have the weights of finished runs."""
    return distributed.training(path, overrides, path.parent / "run")


def test_a_run_keeps_and_takes_up_its_adapters_alone(tmp_path: Path) -> None:
    path = distributed.write(tmp_path)
    first = ready(path, LORA)
    assert first.run(False, None).is_file()
    saved = first.folder / "critics" / "dimo.safetensors"
    state = read_weights(saved)
    assert len(state) == 2 * (4 * 2 + 1)
    assert all(2 in v.shape for v in state.values())
    start = f"train.start.from={first.folder}"
    algorithm = ready(path, LORA, start).algorithm(torch.Generator())
    assert isinstance(algorithm, Distillation)
    psi = algorithm.terms[0].term.critic
    assert psi is not None
    assert same(dict(psi.state_dict()), state)
    assert any(v.any() for k, v in state.items() if k.endswith(".up"))
    for other in ("train.terms.dimo.auxiliary=copy", LORA.replace("2}", "3}")):
        with pytest.raises(WeightsError, match=r"critics/dimo.safetensors does not fit [\s\S]*start.critics: false"):
            ready(path, other, start).algorithm(torch.Generator())
        ready(path, other, start, "train.start.critics=false").algorithm(torch.Generator())


@pytest.mark.slow
@pytest.mark.parametrize("again", ["false", "true"])
def test_ranks_train_the_adapters_that_one_process_trains(again: str, tmp_path: Path) -> None:
    """With DDP in float64 up to the order of sums; and with FSDP2 as with DDP."""
    path, shared = distributed.write(tmp_path), "train.terms.dimo.share_t=true"
    settings = (LORA, shared, f"hardware.activation_checkpointing={again}")
    ddp, double = (*settings, "hardware.strategy=ddp"), "hardware.precision=64-true"
    pieces = (*settings, "hardware.strategy=fsdp2")
    calls = [(path, (*ddp, double, "train.batch_size=4"), 3, 1, True), (path, ddp, 3), (path, pieces, 3)]
    two = ranks.run(2, distributed.each, distributed.trajectory, *calls)
    whole = (path, (*ddp, double, "train.batch_size=8"), 3, 2, True)
    ((one,),) = ranks.run(1, distributed.each, distributed.trajectory, whole)
    expected = distributed.tensors(one[1])
    assert any("/critics/dimo/weights/adapters.project.up" in name for name in expected)
    for (_, found), (logs, state), (logs_of_pieces, state_of_pieces) in two:
        assert far(distributed.tensors(found), expected) < 1e-9
        for row, other in zip(logs, logs_of_pieces, strict=True):
            assert other == pytest.approx(row, rel=1e-4, abs=1e-5)
        assert far(distributed.tensors(state_of_pieces), distributed.tensors(state)) < 1e-4


def far(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two states."""
    assert a.keys() == b.keys()
    return max(float((v.double() - b[k].double()).abs().max()) for k, v in a.items() if v.numel())


def test_layers_are_compiled_with_their_adapters() -> None:
    """The engine compiles `layers()`; what is called there must be the adapted network, not the teacher's layers."""
    teacher, psi = made()
    term = DiMOTerm(spec(), teacher, psi, "arccos")
    layers = term.auxiliary.layers()
    assert not set(layers) & set(teacher.modules())
    calls: list[int] = []
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    asked(psi)
    assert calls == [0, 1, 0, 1]
    assert all(type(m).__name__ == "Adapted" for layer in layers for n, m in layer.named_children() if n == "qkv")
