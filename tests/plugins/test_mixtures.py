"""Expected rows of large tables: the plain sums and gradients, in pieces that bound the memory."""

import pytest
import torch

from softdimo.memory.imitation import Imitation, Live
from softdimo_plugins import mixtures
from softdimo_plugins.mixtures import expected


def given(units=(3, 7), V=11, D=5):
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(V, D, generator=rng, dtype=torch.float64, requires_grad=True)
    probs = torch.randn(*units, V, generator=rng, dtype=torch.float64).softmax(-1).requires_grad_()
    return table, probs, torch.randn(*units, D, generator=rng, dtype=torch.float64)


def plain(table, probs, top_k):
    """As it is written in the docstring."""
    if top_k is None or top_k >= len(table):
        return probs @ table
    kept = torch.zeros_like(probs).scatter(-1, probs.topk(top_k, -1).indices, 1.0)
    return probs * kept / (probs * kept).sum(-1, keepdim=True) @ table


@pytest.mark.parametrize("top_k", [None, 1, 3, 11, 50])
@pytest.mark.parametrize("rows", [1, 4, 1024])
def test_values_and_gradients_are_the_plain_ones(top_k, rows, monkeypatch):
    monkeypatch.setattr(mixtures, "ROWS", rows)
    table, probs, cotangent = given()
    ours, theirs = expected(table, probs, top_k), plain(table, probs, top_k)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(out, (table, probs), cotangent) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("frozen", ["table", "probs"])
def test_what_is_frozen_gets_no_gradient(frozen):
    table, probs, cotangent = given()
    inputs = {"table": table, "probs": probs}
    inputs[frozen] = inputs[frozen].detach()
    (other,) = [t for t in inputs.values() if t.requires_grad]
    out = expected(inputs["table"], inputs["probs"])
    (g,) = torch.autograd.grad(out, other, cotangent)
    (h,) = torch.autograd.grad(plain(inputs["table"], inputs["probs"], None), other, cotangent)
    torch.testing.assert_close(g, h)
    assert not expected(table.detach(), probs.detach()).requires_grad


def test_autocast_rounds_neither_values_nor_gradients():
    table, probs, cotangent = (t.detach().float().requires_grad_() for t in given())
    exact = expected(table, probs, 3)
    (g,) = torch.autograd.grad(exact, probs, cotangent.detach(), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = expected(table, probs, 3)
        (h,) = torch.autograd.grad(out, probs, cotangent.detach())
    assert torch.equal(out, exact)
    assert torch.equal(g, h)


def test_half_precision_mixes_in_the_precision_of_the_table():
    table, probs, cotangent = given()
    out = expected(table.detach().bfloat16(), probs.float().requires_grad_())
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out, probs, cotangent.bfloat16())[0].dtype == torch.float64


@pytest.mark.parametrize("top_k", [None, 64])
@pytest.mark.parametrize("batch", [1, 4])
def test_memory_is_the_gradient_and_a_piece(batch, top_k):
    """Of 4096 tokens of 8192 codes: whatever else is made there and back does not grow with the batch."""
    with Imitation("cpu", "bf16-mixed"):
        table = torch.empty(8192, 64)
        probs = torch.empty(batch, 4096, 8192, requires_grad=True)
        with Live() as live:
            out = expected(table, probs, top_k)
            forth, kept = live.most, live.now
            torch.autograd.backward(out, torch.empty_like(out))
        piece = mixtures.ROWS * 8192 * 4
        assert kept == out.nbytes
        assert forth <= 3 * out.nbytes + 4 * piece
        assert live.most <= probs.nbytes + 3 * out.nbytes + 4 * piece
