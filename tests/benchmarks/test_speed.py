"""The speed benchmark at tiny sizes: what it counts, what it compares, what its instruments see."""

import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import speed
import tables
from instruments import Clock, counted, peak_bytes
from loops import DROPOUT, OURS, OURS16, PUBLISHED, PUBLISHED16, SHARED, SHARED16, build, maskgit
from published_loop import Network, PublishedLoop

from softdimo.kinds import Cond, Context, ImageShape
from softdimo.math.divergence import Divergence, surrogate
from softdimo_plugins.losses.dimo import DiMO


@pytest.fixture(scope="module")
def result():
    return speed.main(["--quick"])


def teacher():
    job = maskgit(quick=True)
    context = Context(ImageShape(3, 1, 1), tuple("abcdefghij"), make=None, tokens=job.tokens)
    torch.manual_seed(0)
    return job.teacher.build(context).requires_grad_(False).eval(), job.teacher


def test_passes_of_an_iteration(result):
    rows = result["maskgit"]["loops"]
    published, shared = (PUBLISHED, DROPOUT, PUBLISHED16), (SHARED, SHARED16)
    passes = dict.fromkeys(published, 10) | {OURS: 9, OURS16: 9} | dict.fromkeys(shared, 8)
    assert {name: row["passes"] for name, row in rows.items()} == passes
    for name, row in rows.items():
        assert row["passes_of"] == {
            "teacher, forward": 2, "student, forward": 2 if name in published else 1, "student, backward": 2,
            "auxiliary, forward": 1 if name in shared else 2, "auxiliary, backward": 2,
        }  # fmt: skip
    assert result["animals"][SHARED]["passes"] == 8


@pytest.mark.parametrize("name", [OURS, SHARED])
def test_the_passes_that_are_stated_are_those_counted(result, name):
    (term,) = maskgit(quick=True).train.terms
    assert isinstance(term, DiMO)
    stated = term.model_copy(update={"share_t": name == SHARED}).passes()
    assert 3 + sum(stated.values()) == result["maskgit"]["loops"][name]["passes"]


def test_phases_add_up_to_steps(result):
    for row in (*result["maskgit"]["loops"].values(), *result["animals"].values()):
        assert len(row["seconds"]) == 2
        assert all(t > 0 for t in row["seconds"])
        assert sum(row["phases"].values()) == pytest.approx(row["median"], rel=1e-6)  # of two, medians are means
        wanted = {"generator forward", "teacher", "generator backward", "auxiliary trained", "optimizer steps", "EMA",
                  "divergence", "masking", "sampling", "rest"}  # fmt: skip
        assert wanted <= set(row["phases"])
    assert set(result["growth"]) == set(speed.GROWTH)
    assert "auxiliary queried" in result["maskgit"]["loops"][OURS]["phases"]
    assert "auxiliary queried" not in result["maskgit"]["loops"][SHARED]["phases"]


def test_both_loops_train_the_same_networks(result):
    found = result["maskgit"]
    ours, published = (found["loops"][name]["parameters"] for name in (OURS, PUBLISHED))
    assert published == ours
    weights = 4 * sum(ours.values())
    assert all(row["peak_bytes"] > weights for row in found["loops"].values())
    assert all(0 < row["rate"] < row["product_rate"] for row in found["loops"].values())
    ratio = found["loops"][OURS]["times_as_fast"]
    assert 0 < ratio["lowest"] <= ratio["median"] <= ratio["highest"]
    assert {"git", "threads", "distributions"} <= set(result["provenance"])


def test_the_tables_have_every_loop_and_size(result):
    text = tables.speed(result)
    for name, row in result["maskgit"]["loops"].items():
        assert f"| {name} | {row['passes']:g} | {row['median']:.2f} |" in text
    assert all(f"| {what} |" in text for what in speed.GROWTH)
    assert "| 1 |" in text  # the yardstick itself


def test_the_published_network_is_the_teacher():
    like, spec = teacher()
    tokens = torch.randint(like.shape.V + 1, (5, like.shape.L))
    labels = torch.tensor([0, 1, 9, -1, 4])
    net = Network(like, spec).eval()
    ours = like(like.embed(tokens[..., None]), Cond(labels)).logits[:, :, 0]
    torch.testing.assert_close(net(net.table(tokens), labels)[..., : like.shape.V], ours, atol=1e-5, rtol=1e-5)


def test_the_published_loss_has_the_gradient_of_ours():
    loop = PublishedLoop(*teacher(), 3, 1e-3, 0.99, beta=-0.2)
    z, psi, phi = torch.randn(3, 3, loop.student.L, loop.student.V + 1).requires_grad_()
    mask = torch.rand(3, loop.student.L) < 0.5
    g = loop.gradient(psi.detach(), phi.detach())
    (published,) = torch.autograd.grad(loop.distance(z, g, mask), z, retain_graph=True)
    ours = Divergence(name="jeffreys", beta=-0.2).gradient(psi[mask].detach(), phi[mask].detach())
    (wanted,) = torch.autograd.grad(surrogate(z[mask], ours, len(mask)), z)
    torch.testing.assert_close(published, wanted, atol=1e-6, rtol=1e-5)


def test_dropout_is_a_switch_of_all_three_networks():
    loop = PublishedLoop(*teacher(), 3, 1e-3, 0.99)
    dropouts = [
        m for net in (loop.teacher, loop.student, loop.auxiliary) for m in net.modules() if isinstance(m, nn.Dropout)
    ]
    assert dropouts
    assert not any(m.training for m in dropouts)
    loop.dropout(True)
    assert all(m.training and m.p == 0.1 for m in dropouts)


def test_a_step_of_each_loop_moves_student_and_auxiliary_alone():
    job = maskgit(quick=True)
    for loop in build(job, (PUBLISHED, OURS)).values():
        before = {name: nn.utils.parameters_to_vector(net.parameters()).clone() for name, net in loop.networks.items()}
        loop.step()
        moved = {
            name: not torch.equal(nn.utils.parameters_to_vector(net.parameters()), before[name])
            for name, net in loop.networks.items()
        }
        assert moved == {"teacher": False, "student": True, "auxiliary": True}


def test_passes_are_seen_where_they_run():
    free, frozen = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
    x = torch.zeros(4, 3, requires_grad=True)
    with counted({"free": free, "frozen": frozen}, batch=2) as passes:
        free(x)  # a forward alone, over twice the batch
        frozen(free(x)).sum().backward()
    assert passes == {"free, forward": 4, "free, backward": 4, "frozen, forward": 2, "frozen, backward": 2}
    free(x)
    assert passes["free, forward"] == 4


def test_a_clock_counts_inner_phases_for_themselves():
    class Work:
        def outer(self) -> None:
            time.sleep(0.02)
            self.inner(1)

        def inner(self, n: int) -> None:
            time.sleep(0.03)

    work, clock = Work(), Clock()
    with clock.watching([(work, "outer", "outer"), (Work, "inner", lambda self, n: f"inner {n}")]):
        begin = time.perf_counter()
        work.outer()
        took = time.perf_counter() - begin
    work.outer()
    assert set(clock.seconds) == {"outer", "inner 1"}
    assert clock.seconds["inner 1"] >= 0.03
    assert clock.seconds["outer"] >= 0.02
    assert sum(clock.seconds.values()) <= took


def test_peak_memory_is_of_what_lives_together():
    def run() -> None:
        kept = torch.zeros(1000)
        for _ in range(3):
            del_me = torch.zeros(2000)
            del del_me
        kept.add_(1)

    assert peak_bytes(run) == 4 * 3000
