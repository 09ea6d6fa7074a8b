import copy

import pytest
import torch
from torch import nn

from softdimo import products
from softdimo.products import Linear, product, quicken

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


def pair(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(48, 20, bias=bias)
    quick = copy.deepcopy(plain)
    quicken(quick)
    return plain, quick


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that went through oneDNN."""
    seen: list[tuple[int, ...]] = []

    def watched(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return product(x, weight, bias)

    monkeypatch.setattr(products, "product", watched)
    return seen


@pytest.mark.parametrize("shape", [(70, 48), (5, 33, 48), (2, 3, 40, 48), (1500, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_a_linear_layer(shape, bias, used) -> None:
    plain, quick = pair(bias)
    results = []
    for layer in (plain, quick):
        x = torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32)).view(shape).requires_grad_()
        y = layer(x)
        given = torch.cos(torch.arange(y.numel(), dtype=torch.float32)).view_as(y)
        results.append((y, *torch.autograd.grad(y, (x, *layer.parameters()), given)))
    rows = torch.Size(shape[:-1]).numel()
    parts = [min(products.CHUNK, rows - i) for i in range(0, rows, products.CHUNK)]
    assert used == [shape, (*shape[:-1], 20), *((20, n) for n in parts)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, atol=2e-4, rtol=1e-5)


def test_a_frozen_layer_keeps_no_input() -> None:
    _, quick = pair()
    x = torch.randn(80, 48, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        quick(x)
        assert {t.data_ptr() for t in kept} == {x.data_ptr(), quick.weight.data_ptr()}
        kept.clear()
        y = quick.requires_grad_(False)(x)
    assert {t.data_ptr() for t in kept} == {quick.weight.data_ptr()}
    (g,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(g, quick.weight.sum(0).expand(80, 48), atol=1e-5, rtol=1e-5)


def test_gradients_of_gradients() -> None:
    found = []
    for layer in pair():
        x = torch.linspace(-1, 1, 64 * 48).view(64, 48).requires_grad_()
        (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), (x, layer.weight)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, atol=1e-2, rtol=1e-4)


def test_transposed_and_strided_rows() -> None:
    plain, quick = pair()
    x = torch.randn(48, 90).T
    torch.testing.assert_close(quick(x), plain(x), atol=1e-5, rtol=1e-5)
    x = torch.randn(80, 2, 96)[:, 1, ::2]
    torch.testing.assert_close(quick(x), plain(x), atol=1e-5, rtol=1e-5)


def test_all_else_is_a_linear_layers_own_way(used) -> None:
    plain, quick = pair()
    x = torch.randn(80, 48)
    assert torch.equal(quick(x[:3]), plain(x[:3]))  # few rows
    assert torch.equal(quick.double()(x.double()), plain.double()(x.double()))
    quick, plain = quick.float(), plain.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert quick(x).dtype == torch.bfloat16
        assert torch.equal(quick(x), plain(x))
    assert quick.to("meta")(x.to("meta")).shape == (80, 20)
    assert not used


def test_a_network_keeps_its_parameters_and_their_names() -> None:
    class Own(nn.Linear):
        pass

    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(Own(4, 2), nn.Linear(2, 2)))
    before = {k: v.data_ptr() for k, v in net.state_dict().items()}
    quicken(net)
    assert {k: v.data_ptr() for k, v in net.state_dict().items()} == before
    assert [type(m) for m in net.modules() if isinstance(m, nn.Linear)] == [Linear, Own, Linear]
    assert type(copy.deepcopy(net)[0]) is Linear
