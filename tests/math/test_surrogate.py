"""The surrogate: exact gradients in both normalizations, nothing at unmasked units, and the recorded public values."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from softdimo.kinds import TokenShape
from softdimo.math.divergence import Divergence, surrogate
from softdimo.math.masking import exact_count_mask

DATA = Path(__file__).parents[1] / "data"
SHAPE = TokenShape(4, 4, 2, 9)


@pytest.fixture
def problem():
    """Logits [B L G V], their mask, per-sample counts, and an arbitrary g at the masked units."""
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(4, 16, 2, 9, generator=rng, dtype=torch.float64, requires_grad=True)
    mask = exact_count_mask(torch.tensor([0.0, 0.3, 0.7, 1.0]), SHAPE, rng)
    counts = mask.flatten(1).sum(1)
    return z, mask, counts, torch.randn(int(counts.sum()), 9, generator=rng, dtype=torch.float64)


def test_sum_gives_g_over_batch(problem):
    z, mask, _, g = problem
    surrogate(z[mask], g, len(z)).backward()
    assert torch.equal(z.grad[mask], g / 4)
    assert (z.grad[~mask] == 0).all()


def test_mean_masked_gives_g_over_batch_and_count(problem):
    z, mask, counts, g = problem
    surrogate(z[mask], g, len(z), "mean_masked", counts).backward()
    begin = 0
    for sample, n in enumerate(counts.tolist()):
        expected = g[begin : begin + n] / (4 * n)
        assert torch.allclose(z.grad[sample][mask[sample]], expected, rtol=1e-14, atol=0)
        begin += n
    assert (z.grad[~mask] == 0).all()


def test_value_is_the_dot_product(problem):
    z, mask, counts, g = problem
    dots = (z[mask] * g).sum(-1)
    assert torch.allclose(surrogate(z[mask], g, 4), dots.sum() / 4)
    means = torch.stack([d.mean() for d in dots.split(counts.tolist())])
    assert torch.allclose(surrogate(z[mask], g, 4, "mean_masked", counts), means.sum() / 4)


def test_g_gets_no_gradient(problem):
    z, mask, _, g = problem
    g.requires_grad_()
    surrogate(z[mask], g, 4).backward()
    assert g.grad is None


def test_bfloat16_student_gets_the_rounded_gradient():
    z = torch.randn(5, 9, dtype=torch.bfloat16, requires_grad=True)
    g = torch.randn(5, 9)
    loss = surrogate(z, g, 4)
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.equal(z.grad, (g / 4).bfloat16())


def test_mean_masked_needs_counts():
    with pytest.raises(ValueError, match="needs counts"):
        surrogate(torch.zeros(2, 3), torch.zeros(2, 3), 1, "mean_masked")


def test_a_sample_without_masked_units_is_skipped():
    z = torch.randn(3, 5, requires_grad=True)
    g = torch.randn(3, 5)
    surrogate(z, g, 2, "mean_masked", torch.tensor([0, 3])).backward()
    assert torch.allclose(z.grad, g / 6)


@pytest.mark.parametrize(
    ("kind", "divergence"),
    [
        ("FKL", Divergence(name="fkl")),
        ("RKL", Divergence(name="rkl")),
        ("Jeffreys_-0.2", Divergence(name="jeffreys", beta=-0.2)),
    ],
)
def test_recorded_gradients_of_the_public_code(kind, divergence):
    """The record has one more class, the mask's own, and sums over masked units and classes, divided by the batch."""
    batch = json.loads((DATA / "maskgit_dimo.json").read_text())["settings"]["B"]
    t = load_file(DATA / "maskgit_dimo.safetensors")
    mask = t["mask"].flatten(1)
    student = t["student_logits"].requires_grad_()

    g = divergence.gradient(t["fake_logits"][mask], t["teacher_guided_logits"][mask])
    surrogate(student[mask], g, batch).backward()

    placed = torch.zeros_like(student)
    placed[mask] = g
    for got, expected in ((placed, t[f"grad_{kind}"]), (student.grad, t[f"dloss_dstudent_{kind}"])):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert 0.5 * g.square().sum().item() / batch == pytest.approx(t[f"loss_{kind}"].item(), rel=1e-5)
