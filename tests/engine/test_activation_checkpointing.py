"""Layers recomputed in the backward pass: the same numbers, less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softdimo import recipe
from softdimo.build import Components
from softdimo.engine import fit
from softdimo.engine.algorithm import Algorithm, Distillation
from softdimo.engine.player import Player
from softdimo.engine.recompute import recompute
from softdimo.engine.train import Training
from softdimo.errors import RecipeError
from softdimo.files import save_weights
from softdimo.kinds import Batch, Cond, Context, Teacher
from softdimo.memory.imitation import Live
from softdimo.testing import TinyTeacher, TinyTokenizer
from softdimo_plugins.lora import Lora
from softdimo_plugins.losses.dimo import DiMO
from tests import tiny
from tests.engine.tiny import batch, context, distillation, fabric, players


def noisy(rate: float = 0.3) -> Context:
    """A context whose teacher has dropout inside its layers."""
    ctx = context()
    assert ctx.teacher is not None
    for layer in ctx.teacher.layers():
        layer.narrow = nn.Sequential(nn.Dropout(rate), layer.narrow)  # type: ignore[assignment, arg-type]
    return ctx


def teacher(ctx: Context, again: bool) -> Teacher:
    assert ctx.teacher is not None
    if again:
        recompute(ctx.teacher)
    return ctx.teacher


def counted(net: nn.Module) -> list[int]:
    """Grows by one whenever the forward of the first layer's `merge` runs, recomputed or not."""
    calls: list[int] = []
    net.layers()[0].merge.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[operator, union-attr]
    return calls


def gradients(net: Teacher, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one pass in training mode, under a given state of the global generator."""
    net.requires_grad_(True).train().zero_grad()
    real = batch()
    assert real.tokens is not None
    torch.manual_seed(seed)
    loss = net(net.embed(real.tokens), real.cond).logits.square().mean()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dropout", [False, True])
def test_loss_and_gradients_are_the_same_and_layers_run_twice(dropout: bool) -> None:
    make = noisy if dropout else context
    plain, again = teacher(make(), False), teacher(make(), True)
    calls = counted(again)
    loss, expected = gradients(plain)
    same_loss, got = gradients(again)
    assert torch.equal(loss, same_loss)
    assert equal(expected, got)
    assert len(calls) == 2
    assert dropout != equal(expected, gradients(plain, seed=1)[1])  # the draws matter, so they were drawn again alike


def test_names_stay_and_passes_without_gradient_run_once() -> None:
    ctx = context()
    names = list(teacher(ctx, False).state_dict())
    net = teacher(ctx, True)
    assert list(net.state_dict()) == names
    assert [n for n, _ in net.named_parameters()] == [n for n in names if n in dict(net.named_parameters())]
    calls = counted(net)
    with torch.no_grad():
        net(net.embed(batch().tokens), batch().cond)  # type: ignore[arg-type]
    assert len(calls) == 1


def test_a_copy_computes_with_its_own_weights() -> None:
    net = teacher(context(), True)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    e, cond = net.embed(batch().tokens), batch().cond  # type: ignore[arg-type]
    assert float(twin(e, cond).logits.abs().max()) == 0
    assert float(net(e, cond).logits.abs().max()) > 0
    calls = counted(twin)
    gradients(twin)
    assert len(calls) == 2


def test_it_holds_less() -> None:
    most = []
    for again in (False, True):
        net = teacher(context(), again).requires_grad_(True)
        e, cond = torch.zeros(32, net.shape.L, net.width), Cond(torch.zeros(32, dtype=torch.long))
        with Live() as live:
            net(e, cond).logits.sum().backward()
        most.append(live.most)
    assert most[1] < 0.7 * most[0]  # of two layers


def played(again: bool, share_t: bool, auxiliary: Any, dropout: bool) -> Distillation:
    ctx = noisy() if dropout else context()
    teacher(ctx, again)
    dimo = DiMO(use="dimo", name="dimo", player=players(), share_t=share_t, auxiliary=auxiliary)
    algorithm = distillation(ctx, torch.Generator().manual_seed(0), dimo=dimo)
    torch.manual_seed(0)
    for i in range(3):
        algorithm.step(i, batch(seed=i))
    return algorithm


@pytest.mark.parametrize("auxiliary", ["copy", Lora(use="lora", rank=2)], ids=["copy", "lora"])
@pytest.mark.parametrize("share_t", [False, True])
def test_a_distillation_is_the_same(share_t: bool, auxiliary: object) -> None:
    """Student, auxiliary and discriminator, with dropout where the auxiliary trains in training mode."""
    plain, again = (played(again, share_t, auxiliary, dropout=True) for again in (False, True))
    assert equal(dict(plain.network.state_dict()), dict(again.network.state_dict()))
    for a, b in zip(plain.terms, again.terms, strict=True):
        assert a.critic is not None
        assert b.critic is not None
        assert equal(dict(a.critic.raw.state_dict()), dict(b.critic.raw.state_dict()))
    calls = [counted(net) for net in (again.network, again.terms[0].critic.raw)]  # type: ignore[union-attr]
    again.step(3, batch())
    assert [len(c) for c in calls] == [2, 2 if share_t else 3]


def test_a_teacher_in_training_is_the_same() -> None:
    found = []
    for again in (False, True):
        net = teacher(noisy(), again).requires_grad_(True)
        player = Player("teacher", net, players(), 10, fabric())
        objective = fit.teacher_objective(net, "arccos", 0.0, 0.1, torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        for i in range(3):
            loss, _ = objective(player.module.train(), batch(seed=i), 0.0)
            player.turn(i, loss)
        found.append({k: v.clone() for k, v in net.state_dict().items()})
    assert equal(*found)


def test_networks_without_layers_are_refused() -> None:
    bare = type("Bare", (TinyTeacher,), {"layers": lambda self: ()})()
    for net in (bare, TinyTokenizer()):
        with pytest.raises(RecipeError, match=rf"{type(net).__name__} names no layers; set it to false"):
            recompute(net)


def algorithm(path: Path, *overrides: str) -> Algorithm:
    """What a recipe trains, its other networks with fresh weights instead of those of other recipes."""
    bare = Components(recipe.load(path, overrides).recipe)
    weights = [f"{kind}.weights={path.parent / kind}.safetensors" for kind in ("tokenizer", "teacher")]
    for kind in ("tokenizer", "teacher"):
        save_weights(path.parent / f"{kind}.safetensors", bare.fresh(getattr(bare.recipe, kind)).state_dict())
    parts = Components(recipe.load(path, [*overrides, *weights]).recipe)
    return Training(parts, fabric(), path.parent, "hash", "title").algorithm(torch.Generator().manual_seed(0))


def test_a_recipe_switches_it_on(tmp_path: Path) -> None:
    path, on = tiny.write(tmp_path), "hardware.activation_checkpointing=true"
    runs, cond = [algorithm(path), algorithm(path, on)], Cond(torch.arange(8) % 10)
    calls = [counted(run.network) for run in runs]
    for run in runs:
        for i in range(3):
            torch.manual_seed(i)
            run.step(i, Batch(cond, tokens=torch.randint(16, (8, 16, 1))))
    assert [len(c) for c in calls] == [3, 6]
    assert equal(*(dict(run.network.state_dict()) for run in runs))
    fitted = algorithm(path.parent / "teacher.yaml", on)
    calls.append(counted(fitted.network))
    fitted.step(0, Batch(cond, tokens=torch.randint(16, (8, 16, 1))))
    assert len(calls[-1]) == 2


def test_a_recipe_for_a_network_without_layers_is_refused(tmp_path: Path) -> None:
    path = tiny.write(tmp_path).parent / "tokenizer.yaml"
    loaded = recipe.load(path, ["hardware.activation_checkpointing=true"])
    training = Training(Components(loaded.recipe), fabric(), tmp_path, "hash", "title")
    with pytest.raises(RecipeError, match=r"^hardware.activation_checkpointing: .*ConvVQTokenizer names no layers"):
        training.algorithm(torch.Generator())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_it_can_be_compiled() -> None:
    from torch._dynamo.utils import counters

    plain, again = teacher(context(), False), teacher(context(), True)
    loss, expected = gradients(plain)
    counters.clear()
    for layer in again.layers():
        layer.compile(backend="aot_eager")
    same_loss, got = gradients(again)
    assert counters["frames"]["ok"] > 0
    assert not counters["graph_break"]
    torch.testing.assert_close(loss, same_loss)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-6)
