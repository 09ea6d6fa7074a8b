"""What is said about memory, against what is measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from softdimo.engine.recompute import recompute
from softdimo.kinds import Cond, Teacher, TokenShape
from softdimo.memory.imitation import Imitation, Live
from softdimo.memory.sizes import Blank, available, held, human, share
from softdimo.memory.turns import made
from softdimo.spec import Optimizer, Player
from softdimo_plugins.lora import Lora, LoraTeacher
from tests import tiny
from tests.engine.tiny import context

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import memory as benchmark


def test_shares_of_a_trained_network() -> None:
    net = nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5))
    net[0].weight.requires_grad_(False)
    net[1].weight = net[1].bias  # shared parameters count once
    found = share("n", net, Player(), "32-true", averages=2)
    assert found.parameters == 20
    buffers = 5 * 4 + 5 * 4 + 8
    assert (found.weights, found.gradients, found.optimizer, found.ema) == (80 + buffers, 20, 40, 40)
    assert found.total == 80 + buffers + 100


@pytest.mark.parametrize(
    ("precision", "optimizer", "wanted"),
    [("bf16-true", Optimizer(), (30, 30, 60)), ("bf16-mixed", Optimizer(name="adamw"), (60, 60, 120)),
     ("64-true", Optimizer(name="sgd"), (120, 120, 0)), ("32-true", Optimizer(name="sgd", momentum=0.9), (60, 60, 60))],
)  # fmt: skip
def test_precision_and_optimizer_decide(precision: str, optimizer: Optimizer, wanted: tuple[int, ...]) -> None:
    found = share("n", nn.Linear(3, 5, bias=False), Player(optimizer=optimizer), precision)
    assert (found.weights, found.gradients, found.optimizer) == wanted


def test_a_frozen_network_has_weights_only() -> None:
    for precision in ("32-true", "bf16-true"):  # which converts what is trained
        assert share("n", nn.Linear(3, 5, bias=False), None, precision).total == 60


def teacher(rows: int = 7) -> tuple[Teacher, torch.Tensor, Cond]:
    net = context(TokenShape(rows, 7, 1, 32)).teacher
    assert net is not None
    net.requires_grad_(True)
    return net, torch.zeros(24, net.shape.L, net.width), Cond(torch.zeros(24, dtype=torch.long))


def back_and_forth(net: Teacher, e: torch.Tensor, cond: Cond) -> None:
    logits = net(e, cond).logits
    with torch.autocast("cpu", enabled=False):
        logits.backward(torch.empty_like(logits))
    net.zero_grad()


def test_what_is_alive_is_what_the_allocator_has_handed_out() -> None:
    net, e, cond = teacher()
    with Live() as live:
        back_and_forth(net, e, cond)
    assert live.most == pytest.approx(benchmark.peak(lambda: back_and_forth(net, e, cond)), rel=0.01)
    assert live.now == 0
    with Live() as live:
        kept = [e + 1, e.view(-1), e.add_(0)]
    assert (live.now, live.most) == (e.nbytes, e.nbytes)
    del kept
    assert live.now == 0


@pytest.mark.parametrize("rows", [7, 40])  # a CPU takes another kernel for the attention of long sequences
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("again", [False, True])
def test_an_imitation_holds_what_the_network_holds(rows: int, precision: str, again: bool) -> None:
    net, e, cond = teacher(rows)
    if again:
        recompute(net)
    with Imitation("cpu", precision) as like:
        twin, x, c = like.of(net, trained=True), like.of(e, trained=True), like.of(cond)
        with Live() as expected:
            back_and_forth(twin, x, c)
    if precision == "bf16-true":
        net, e = net.bfloat16(), e.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"), Live() as found:
        back_and_forth(net, e, cond)
    assert expected.most == pytest.approx(found.most, rel=0.01)  # a few numbers per layer for the draws
    assert expected.most > 1e5


def test_an_imitation_has_no_numbers_and_shares_what_was_shared() -> None:
    net, e, _ = teacher()
    psi = LoraTeacher(net.requires_grad_(False), Lora(use="lora", rank=2))
    with Imitation("cpu", "bf16-true") as like:
        twin, adapted = like.of(net), like.of(psi, trained=True)
        inside = {id(p) for p in adapted._net[0].parameters() if p.dtype == torch.float32}
        assert inside == {id(p) for p in twin.parameters()}
        assert {p.dtype for p in adapted.parameters()} == {torch.bfloat16}
        with pytest.raises(RuntimeError):
            float(like.of(e).sum())
    assert {type(p.data) for p in net.parameters()} == {torch.Tensor}


def test_a_pass_leaves_out_gradients_of_weights_and_says_what_it_cannot_do() -> None:
    net, x = nn.Linear(300, 500), torch.zeros(7, 300)
    with Imitation("cpu", "32-true") as like:
        twin, y = like.of(net), like.of(x)
        found = made(lambda: twin(y), twin.parameters())
        assert found.kept == found.forth == 7 * 500 * 4  # the input was there before
        assert found.back == 2 * 7 * 500 * 4
        assert all(p.grad is None for p in twin.parameters())
        assert made(lambda: twin(y), grad=False).back == found.kept
        assert "aten" in made(lambda: y[y > 0]).unknown


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("hardware.activation_checkpointing=true",),
        ("hardware.precision=bf16-mixed",),
        ("train.terms=[{use: dimo, share_t: true}]",),
        ("train.terms=[{use: dimo, auxiliary: {use: lora, rank: 4}}]",),
        ("train.terms=[{use: dimo, auxiliary: none}]",),
    ],
    ids=["copy", "recomputed", "bf16-mixed", "share_t", "lora", "none"],
)
def test_the_peak_of_an_iteration_is_the_one_expected(overrides: tuple[str, ...], tmp_path: Path) -> None:
    path = tiny.write(tmp_path)
    estimate, measured = benchmark.iteration(path, ["train.batch_size=256", *overrides])
    assert benchmark.expected(estimate) == pytest.approx(measured, rel=0.15)


def test_adapters_take_the_copys_weights_and_moments_away(tmp_path: Path) -> None:
    path, wide = tiny.write(tmp_path), "teacher={use: compact, width: 128, depth: 2, heads: 2}"
    found = {}
    for name in ("copy", "{use: lora, rank: 2}"):
        estimate, measured = benchmark.iteration(path, [wide, f"train.terms=[{{use: dimo, auxiliary: {name}}}]"])
        critic = next(s for s in estimate.shares if s.name == "dimo's critic")
        found[name] = critic, estimate.networks, measured
    (copied, with_copy, before), (adapters, with_adapters, after) = found.values()
    assert adapters.total < 0.1 * copied.total
    assert adapters.parameters * 4 == adapters.weights == adapters.gradients
    assert before - after == pytest.approx(with_copy - with_adapters, rel=0.05)


def test_the_divergence_holds_a_fraction_of_a_tensor_beside_its_result() -> None:
    found = benchmark.kernel()
    assert found["chunked"] <= 2.5
    assert found["chunked, and the student's gradient"] <= 2.5
    assert found["whole tensors"] > 2 * found["chunked"]


def test_blank_leaves_fresh_weights_on_meta_alone_and_others_not() -> None:
    with Blank(), torch.device("meta"):
        net = nn.Linear(4, 4)
    assert net.weight.device.type == "meta"
    with Blank():
        drawn = nn.init.normal_(torch.zeros(100))
        uniform = torch.zeros(100).uniform_(generator=torch.Generator().manual_seed(0))
    assert float(drawn.std()) > 0.5
    assert float(uniform.std()) > 0.1


def test_what_an_object_holds_counts_once() -> None:
    pixels = np.zeros((10, 10), np.uint8)
    shared = torch.from_numpy(pixels)

    class Source:
        def __init__(self) -> None:
            self.a, self.b, self.again = shared, [torch.zeros(5)], None
            self.again = self

    assert held(Source()) == 100 + 20
    assert held({"x": shared[:2], "y": shared[2:]}) == shared[:2].nbytes


def test_the_device_and_sizes_for_people() -> None:
    name, free = available("cpu")
    assert name == "CPU"
    assert free > 2**20
    assert [human(n) for n in (0, 1023, 1536, 5 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
