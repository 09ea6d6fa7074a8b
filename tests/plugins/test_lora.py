"""The auxiliary as adapters on the frozen teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from softdimo.errors import PluginError
from softdimo.kinds import Cond, Context, Output, Teacher, TokenShape
from softdimo.math.guidance import Guidance
from softdimo.testing import TinyTeacher, check_loss
from softdimo.testing import context as contract_context
from softdimo_plugins.lora import Lora, LoraTeacher
from softdimo_plugins.losses.dimo import DiMO, DiMOTerm
from tests import ranks
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


def trained_on_ranks(share_t: bool) -> tuple[dict[str, Tensor], bool]:
    """Adapters after two iterations on this rank's batches, and whether the teacher is what it was."""
    from lightning_fabric import Fabric

    from tests.engine import tiny as engine

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    ctx = context()
    assert ctx.teacher is not None
    before = frozen_state(ctx.teacher)
    engine.fabric = lambda: fabric  # what `distillation` sets its players up with
    algorithm = distillation(
        ctx, torch.Generator().manual_seed(fabric.global_rank), gan=False, dimo=spec(share_t=share_t)
    )
    for i in range(2):
        algorithm.step(i, batch(seed=2 * i + fabric.global_rank))
    critic = algorithm.terms[0].term.critic
    assert critic is not None
    return {k: v.clone() for k, v in critic.state_dict().items()}, same(before, frozen_state(ctx.teacher))


@pytest.mark.slow
@pytest.mark.parametrize("share_t", [False, True])
def test_ranks_train_the_same_adapters(share_t: bool) -> None:
    (one, kept), (two, also) = ranks.run(2, trained_on_ranks, share_t)
    assert kept
    assert also
    assert same(one, two)
    ctx: Context = context()
    assert ctx.teacher is not None
    assert not same(one, LoraTeacher(ctx.teacher, lora()).state_dict())


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
