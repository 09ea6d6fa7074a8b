from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from softdimo.kinds import Cond, TokenShape
from softdimo.math.guidance import Guidance
from softdimo.memory import Blank, available, held, human, saved_bytes, share, student_phases
from softdimo.spec import Optimizer, Player
from softdimo_plugins.losses.dimo import DiMO
from tests.engine.tiny import batch, context, distillation, players


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
    assert share("n", nn.Linear(3, 5, bias=False), None, "32-true").total == 60


def test_saved_bytes_count_each_storage_once_and_no_parameters() -> None:
    net = nn.Linear(3, 5)
    x = torch.zeros(7, 3)
    assert saved_bytes(lambda: net(x), [net]) == 7 * 3 * 4
    assert saved_bytes(lambda: net(x).relu(), [net]) == 7 * 3 * 4 + 7 * 5 * 4
    y = torch.zeros(4, requires_grad=True)
    assert saved_bytes(lambda: y * y) == 16


def test_the_estimate_on_meta_is_what_a_cpu_saves() -> None:
    teacher = context().teacher
    assert teacher is not None
    net = teacher.requires_grad_(True)
    meta = copy.deepcopy(net).to("meta")
    sizes = []
    for module, device in ((net, "cpu"), (meta, "meta")):
        e = torch.empty(6, net.shape.L, net.width, device=device)
        cond = Cond(torch.zeros(6, dtype=torch.long, device=device))
        sizes.append(saved_bytes(lambda m=module, e=e, c=cond: m(e, c), [module]))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


@pytest.mark.parametrize("share_t", [False, True])
def test_the_peak_of_an_iteration_is_the_one_estimated(share_t: bool, tmp_path: Path) -> None:
    ctx = context(TokenShape(7, 7, 1, 128))
    spec = DiMO(use="dimo", name="dimo", player=players(), guidance=Guidance(scale=2.0), share_t=share_t)
    algorithm = distillation(ctx, torch.Generator().manual_seed(0), gan=False, dimo=spec)
    real = batch(96, shape=ctx.tokens)
    algorithm.step(0, real)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        algorithm.step(1, real)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    memory = sorted((e["ts"], e["args"]) for e in events if e.get("name") == "[memory]")
    totals = [args["Total Allocated"] for _, args in memory]
    measured = max(totals) - (totals[0] - memory[0][1]["Bytes"])

    meta = {e.name: copy.copy(e.term) for e in algorithm.terms}
    assert isinstance(meta["dimo"].critic, nn.Module)
    meta["dimo"].critic = meta["dimo"].critic.to("meta")
    nets = [net.to("meta") for net in (algorithm.network, ctx.teacher) if net is not None]
    phases = list(student_phases(nets[0], nets[1], None, meta, real.cond.to("meta"), "32-true"))
    assert max(p.size for p in phases) == pytest.approx(measured, rel=0.15)


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
