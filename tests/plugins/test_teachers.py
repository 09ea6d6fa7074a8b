"""The compact teacher: embeddings hard and soft, logits at units, features, the null branch, precision."""

import copy

import pytest
import torch
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import NULL_LABEL, Cond, Context, ImageShape, TokenShape
from softdimo_plugins.layers import SHORT, attend
from softdimo_plugins.teachers.compact import Compact

CLASSES = ("a", "b", "c")
SHAPES = [TokenShape(3, 4, 1, 11), TokenShape(3, 4, 2, 5), TokenShape(2, 2, 3, 4)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"G{s.G}")


def unused(spec):
    raise AssertionError("the teacher has no nested components")


def make(shape=SHAPES[0], **settings):
    torch.manual_seed(0)
    settings = {"width": 16, "heads": 2} | settings
    net = Compact(**settings).build(Context(ImageShape(1, 8, 8), CLASSES, unused, tokens=shape))
    for p in net.parameters():  # nothing is zero, so that nothing is untested
        p.data += 0.05 * torch.randn(p.shape)
    return net


def sample(shape, n=5, seed=0):
    """Random tokens with a random mask: x_t, tokens without the mask, mask, conditions."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(shape.V, (n, shape.L, shape.G), generator=rng)
    mask = torch.rand(tokens.shape, generator=rng) < 0.5
    labels = torch.arange(n) % len(CLASSES)
    return tokens.masked_fill(mask, shape.V), tokens, mask, Cond(labels)


@shapes
def test_soften_equals_embed_at_one_hot(shape):
    net = make(shape)
    x_t, tokens, mask, _ = sample(shape)
    one_hot = functional.one_hot(tokens, shape.V).float()
    torch.testing.assert_close(net.soften(one_hot), net.embed(tokens), rtol=0, atol=1e-6)
    torch.testing.assert_close(net.soften(one_hot, mask), net.embed(x_t), rtol=0, atol=1e-6)
    everything = torch.ones_like(mask)
    torch.testing.assert_close(
        net.soften(one_hot, everything), net.embed(torch.full_like(tokens, shape.V)), rtol=0, atol=1e-6
    )


@shapes
def test_soften_is_the_expectation(shape):
    net = make(shape)
    _, tokens, mask, _ = sample(shape, n=2)
    other = sample(shape, n=2, seed=1)[1]
    p, q = (functional.one_hot(t, shape.V).float() for t in (tokens, other))
    mixed = net.soften(0.25 * p + 0.75 * q, mask)
    torch.testing.assert_close(mixed, 0.25 * net.soften(p, mask) + 0.75 * net.soften(q, mask))


@shapes
def test_gradient_reaches_the_unmasked_probabilities_only(shape):
    net = make(shape)
    _, tokens, mask, cond = sample(shape)
    probs = functional.one_hot(tokens, shape.V).float().requires_grad_()
    net(net.soften(probs, mask), cond).logits.square().sum().backward()
    size = probs.grad.abs().sum(-1)
    assert torch.equal(size > 0, ~mask)


@shapes
def test_logits_at_units_are_the_full_logits_there(shape):
    net = make(shape)
    x_t, _, mask, cond = sample(shape)
    full = net(net.embed(x_t), cond).logits
    assert full.shape == (5, shape.L, shape.G, shape.V)
    part = net(net.embed(x_t), cond, at=mask).logits
    where = mask.nonzero(as_tuple=True)
    torch.testing.assert_close(part, full[where])
    torch.testing.assert_close(net(net.embed(x_t), cond, at=torch.ones_like(mask)).logits, full.flatten(0, 2))


@shapes
def test_empty_at_skips_the_head_and_later_blocks(shape):
    net = make(shape)
    x_t, _, mask, cond = sample(shape)
    e = net.embed(x_t)
    wanted = net(e, cond, features=(0, 1)).features

    def skipped(*_):
        raise AssertionError("this part should be skipped")

    net.head = skipped
    net.blocks[2].forward = skipped
    out = net(e, cond, at=torch.zeros_like(mask), features=(1, 0))
    assert out.logits.shape == (0, shape.V)
    assert torch.equal(out.features[0], wanted[1])
    assert torch.equal(out.features[1], wanted[0])


def test_features_are_the_outputs_of_the_blocks():
    net = make()
    x_t, _, mask, cond = sample(net.shape)
    e = net.embed(x_t)
    out = net(e, cond, features=(0, 2))
    assert [f.shape for f in out.features] == [e.shape, e.shape]
    torch.testing.assert_close(net.head(out.features[1]), out.logits)
    assert torch.equal(out.logits, net(e, cond).logits)
    assert net(e, cond).features == ()
    assert torch.equal(net(e, cond, at=mask, features=(0,)).features[0], out.features[0])
    net.blocks[0].narrow.weight.data += 1
    assert not torch.equal(net(e, cond, features=(0,)).features[0], out.features[0])


def test_the_layers_are_the_blocks_in_order():
    net = make()
    assert [type(layer).__name__ for layer in net.layers()] == ["Block"] * 3
    assert all(a is b for a, b in zip(net.layers(), net.blocks, strict=True))


@pytest.mark.parametrize("index", [3, -1])
def test_features_of_blocks_that_are_not_there(index):
    net = make()
    x_t, _, _, cond = sample(net.shape)
    with pytest.raises(ValueError, match="this network has blocks 0 to 2"):
        net(net.embed(x_t), cond, features=(index,))


def test_null_branch_is_one_more_label():
    net = make()
    x_t, _, _, cond = sample(net.shape)
    e = net.embed(x_t)
    null = net.null(cond)
    assert null.labels.tolist() == [NULL_LABEL] * 5
    unconditional = net(e, null).logits
    assert torch.equal(unconditional, net(e, Cond(torch.full((5,), len(CLASSES)))).logits)
    for k in range(len(CLASSES)):
        assert not torch.allclose(unconditional, net(e, Cond(torch.full((5,), k))).logits)
    unconditional.square().sum().backward()
    touched = net.condition.weight.grad.abs().sum(1) > 0
    assert touched.tolist() == [False] * len(CLASSES) + [True]


@shapes
def test_samples_do_not_mix(shape):
    net = make(shape)
    x_t, _, _, cond = sample(shape)
    together = net(net.embed(x_t), cond).logits
    alone = torch.cat([net(net.embed(x_t[i : i + 1]), cond[i : i + 1]).logits for i in range(5)])
    torch.testing.assert_close(together, alone)


def test_frozen_are_the_tables_and_the_bias():
    net = make()
    names = [n for n, _ in net.named_parameters() if n.startswith(net.frozen())]
    assert names == ["table", "positions", "output_bias"]


def test_table_rms_leaves_the_mask_row_out():
    net = make()
    net.table.data.fill_(0.5)
    net.table.data[:, -1] = 100
    assert net.table_rms() == 0.5
    assert net.table_rms().shape == ()


def test_head_is_tied_to_the_table():
    net = make()
    x_t, _, _, cond = sample(net.shape)
    before = net(net.embed(x_t), cond).logits
    e = net.embed(x_t)
    net.table.data[0, 4] += 1
    after = net(e, cond).logits  # the same input embedding
    changed = (after != before).flatten(0, 2).any(0)
    assert changed.nonzero().flatten().tolist() == [4]


@shapes
def test_meta_device(shape):
    net = make(shape).to("meta")
    x_t, tokens, mask, cond = (t.to("meta") for t in sample(shape))
    out = net(net.soften(functional.one_hot(tokens, shape.V).float(), mask) + net.embed(x_t), cond, features=(0,))
    assert out.logits.shape == (5, shape.L, shape.G, shape.V)
    assert out.features[0].device.type == "meta"


@shapes
def test_bf16_autocast_returns_fp32_logits(shape):
    net = make(shape)
    x_t, tokens, mask, cond = sample(shape)
    exact = net(net.embed(x_t), cond).logits
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(net.embed(x_t), cond).logits
        e = net.soften(functional.one_hot(tokens, shape.V).float(), mask)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1 * exact.std().item())
    torch.testing.assert_close(e, net.embed(x_t), rtol=0, atol=1e-6)  # soft embeddings keep their precision


@pytest.mark.parametrize("length", [7, SHORT, SHORT + 1])
def test_both_ways_of_attention_agree(length):
    q, k, v = torch.randn(3, 2, 2, length, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attend(q, k, v), functional.scaled_dot_product_attention(q, k, v))
    exact = attend(q, k, v)
    torch.testing.assert_close(attend(*(t.bfloat16() for t in (q, k, v))).float(), exact, rtol=0.05, atol=0.03)
    assert not torch.equal(attend(q, k, v, 0.5), exact)


@pytest.mark.parametrize("settings", [{"local": False}, {"activation": "relu2"}, {"activation": "gelu"}, {"depth": 1}])
def test_variants_give_other_functions(settings):
    net = make(**settings)
    x_t, _, _, cond = sample(net.shape)
    logits = net(net.embed(x_t), cond).logits
    assert torch.isfinite(logits).all()
    assert not torch.allclose(logits, make()(make().embed(x_t), cond).logits)


def test_convolutions_see_the_grid_and_not_the_class_token():
    net = make()
    block = net.blocks[0]
    x = torch.randn(1, 13, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attended = block(x)
        block.local.weight.zero_()
        block.local.bias.zero_()
        block.local.weight[:, 0, 1, 2] = 1  # adds the right neighbor
        shifted = functional.pad(x[:, 1:].view(1, 3, 4, 16)[:, :, 1:], (0, 0, 0, 1)).view(1, 12, 16)
        moved = torch.cat([x[:, :1], x[:, 1:] + shifted], 1)
        got, block.local = block(x), None
        torch.testing.assert_close(got, block(moved))
        assert not torch.allclose(attended, got)


def test_same_seed_same_weights_and_copies_are_independent():
    first, again = make(), make()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    twin = copy.deepcopy(first)
    twin.table.data += 1
    assert torch.equal(first.table, again.table)
    assert all(t.is_contiguous() for t in first.state_dict().values())


def test_first_logits_are_small():
    torch.manual_seed(0)
    net = Compact().build(Context(ImageShape(1, 8, 8), CLASSES, unused, tokens=TokenShape(7, 7, 1, 128)))
    x_t, _, _, cond = sample(net.shape)
    assert net(net.embed(x_t), cond).logits.std() < 1


@shapes
def test_it_learns_what_the_class_says(shape):
    net = make(shape)
    rng = torch.Generator().manual_seed(0)
    wanted = torch.randint(shape.V, (3, shape.L, shape.G), generator=rng)  # one sequence for each class
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        labels = torch.randint(3, (16,), generator=rng)
        x = wanted[labels]
        mask = torch.rand(x.shape, generator=rng) < 0.7
        logits = net(net.embed(x.masked_fill(mask, shape.V)), Cond(labels), at=mask).logits
        losses.append(functional.cross_entropy(logits, x[mask]))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.1 < losses[0]


def test_impossible_settings():
    with pytest.raises(RecipeError, match="heads: 3 does not divide width: 16"):
        make(heads=3)
    with pytest.raises(RecipeError, match="needs a tokenizer"):
        Compact().build(Context(ImageShape(1, 8, 8), CLASSES, unused))
