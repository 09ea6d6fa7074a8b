import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from softdimo.engine import products
from softdimo.engine.products import Linear, quicken

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


def pair(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(48, 20, bias=bias)
    quick = copy.deepcopy(plain)
    quicken(quick)
    return plain, quick


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What went through oneDNN, by kind of convolution."""
    seen: list[str] = []

    def watch(owner: object, name: str) -> None:
        own = getattr(owner, name)

        def watched(*args: object) -> torch.Tensor:
            seen.append(name)
            return own(*args)

        monkeypatch.setattr(owner, name, watched)

    watch(torch, "mkldnn_convolution")
    watch(torch, "convolution")
    return seen


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(70, 48), (5, 133, 48), (2, 3, 200, 48), (1500, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_a_linear_layer(shape, bias, used, threads) -> None:
    plain, quick = pair(bias)
    results = []
    for layer in (plain, quick):
        x = torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32)).view(shape).requires_grad_()
        y = layer(x)
        given = torch.cos(torch.arange(y.numel(), dtype=torch.float32)).view_as(y)
        results.append((y, *torch.autograd.grad(y, (x, *layer.parameters()), given)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, atol=2e-4, rtol=1e-5)
    assert used[0] == "mkldnn_convolution"
    rows = torch.Size(shape[:-1]).numel()
    for kind, elements in zip(used[1:], (rows * 20, rows * 48), strict=True):  # g W, then g^T x
        assert kind == ("convolution" if threads > 1 and elements > 20480 else "mkldnn_convolution")


def test_gradients_lie_in_memory_as_their_weights_do(threads) -> None:
    """So that they are taken as they come, and not copied."""
    _, quick = pair()
    quick(torch.randn(2000, 48, requires_grad=True)).sum().backward()
    assert quick.weight.grad is not None
    assert quick.weight.grad.is_contiguous()
    out = products.of_rows(torch.randn(700, 40), torch.randn(700, 48))
    assert out.shape == (40, 48)
    assert out.is_contiguous()


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
