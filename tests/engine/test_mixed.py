import copy

import pytest
import torch
from torch import nn

from softdimo.engine.hardware import launch
from softdimo.engine.mixed import autocast, lighten, lightens
from softdimo.kinds import Cond, Context, ImageShape, TokenShape
from softdimo.recipe.model import Hardware
from softdimo_plugins.teachers.compact import Compact


def teacher() -> nn.Module:
    torch.manual_seed(0)
    context = Context(ImageShape(1, 1, 1), ("a", "b"), lambda spec: None, TokenShape(4, 4, 1, 8))
    net = Compact(use="compact", width=32, depth=2).build(context)
    return net.requires_grad_(False).eval()


def test_a_light_teacher_computes_the_same_bits_under_autocast_in_half_the_memory() -> None:
    net = teacher()
    light = copy.deepcopy(net)
    lighten(light)
    tokens, cond = torch.randint(9, (3, 16, 1)), Cond(torch.tensor([0, 1, -1]))
    results = []
    for each in (net, light):
        e = each.embed(tokens).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            z, (f,) = each(e, cond, features=(1,))
        results.append((z, f, *torch.autograd.grad(z.square().sum(), e)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    changed = {n for n, p in light.named_parameters() if p.dtype == torch.bfloat16}
    assert changed == {
        n
        for n in dict(net.named_parameters())
        if n.startswith("blocks.") and any(word in n for word in (".qkv.", ".merge.", ".widen.", ".narrow."))
    }


@pytest.mark.parametrize(
    ("precision", "strategy", "want"),
    [("bf16-mixed", "auto", True), ("bf16-mixed", "fsdp2", False), ("32-true", "auto", False)],
)
def test_only_mixed_precision_lightens_and_never_pieces(precision, strategy, want) -> None:
    assert lightens(Hardware(precision=precision, strategy=strategy)) is want


def test_rounded_weights_go_with_the_graph() -> None:
    fabric = launch(Hardware(accelerator="cpu", precision="bf16-mixed"))
    layer = nn.Linear(4, 4)
    with autocast(fabric):
        assert not torch.is_autocast_cache_enabled()
        with torch.no_grad():
            layer(torch.ones(1, 4))
        assert layer(torch.ones(1, 4)).grad_fn is not None
    assert torch.is_autocast_cache_enabled()
