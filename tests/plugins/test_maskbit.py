"""MaskBit: bits in, masked groups, the tokenizer's order of bits and padding, public files read strictly."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from softdimo.errors import RecipeError, WeightsError
from softdimo.kinds import Cond, Context, ImageShape, TokenShape
from softdimo.math.guidance import to_scale
from softdimo_plugins.bits import classes, expected, signs
from softdimo_plugins.samplers.maskbit import MaskBit as Sampler
from softdimo_plugins.teachers.maskbit import MaskBit
from softdimo_plugins.tokenizers.maskbit import MaskBitLFQ, SameConv
from tests.helpers import CountingTeacher, rng

DATA = Path(__file__).parents[1] / "data"
SIZES = {"width": 48, "depth": 2, "heads": 4, "mlp": 80, "classes": 10}
SHAPE = TokenShape(4, 4, 2, 8)
IMAGE = ImageShape(3, 8, 8)
TOKENIZER = {"bits": 6, "width": 32, "multipliers": (2, 1), "blocks": 1}
"""The sizes of the recorded networks."""


def context(tokens=SHAPE, classes=3, image=IMAGE):
    return Context(image, ("",) * classes, None, tokens)


def teacher(shape=SHAPE, **settings):
    torch.manual_seed(0)
    return MaskBit(**SIZES | settings).build(context(shape)).eval()


def tokenizer(image=IMAGE, **settings):
    torch.manual_seed(0)
    return MaskBitLFQ(**TOKENIZER | settings).build(context(image=image)).eval()


def ids(shape=SHAPE, n=3, masked=True):
    return torch.randint(shape.V + masked, (n, shape.L, shape.G), generator=rng())


def test_classes_and_their_signs_are_inverse_and_bit_0_comes_first():
    assert signs(3)[[0, 1, 6]].tolist() == [[-1, -1, -1], [1, -1, -1], [-1, 1, 1]]
    assert torch.equal(classes(signs(5) > 0), torch.arange(32))


def test_expected_bits_are_those_of_the_marginals():
    probs = torch.rand(2, 3, 2, 8, generator=rng()).softmax(-1)
    beta = expected(signs(3), probs).view(2, 3, 2, 3)
    for k in range(3):
        one = probs[..., (torch.arange(8) >> k) & 1 == 1].sum(-1)
        torch.testing.assert_close(beta[..., k], 2 * one - 1)
    mask = torch.tensor([True, False]).expand(2, 3, 2)
    assert torch.equal(expected(signs(3), probs, mask).view_as(beta)[..., 0, :], torch.zeros(2, 3, 3))
    assert torch.equal(expected(signs(3), probs, mask).view_as(beta)[..., 1, :], beta[..., 1, :])


def test_a_position_can_be_masked_by_half():
    net = teacher()
    W, a = net.input_proj.weight, net.input_proj.bias
    half = net.embed(torch.tensor([[[5, SHAPE.V]] * SHAPE.L]))[0, 0]
    torch.testing.assert_close(half, W[:, :3] @ torch.tensor([1.0, -1.0, 1.0]) + a)
    torch.testing.assert_close(net.embed(torch.full((1, SHAPE.L, 2), SHAPE.V))[0, 0], a)


def test_uniform_probabilities_look_masked():
    net = teacher()
    uniform = torch.full((1, SHAPE.L, 2, 8), 1 / 8)
    torch.testing.assert_close(net.soften(uniform), net.embed(torch.full((1, SHAPE.L, 2), SHAPE.V)))


@pytest.mark.parametrize("groups", [1, 2])
def test_table_rms_is_that_of_all_tokens(groups):
    net = teacher(TokenShape(2, 2, groups, 4))
    every = torch.cartesian_prod(*[torch.arange(4)] * groups).view(-1, 1, groups).expand(-1, 4, -1)
    torch.testing.assert_close(net.table_rms(), net.embed(every).square().mean().sqrt())


def test_the_null_class_is_the_last_row_and_labels_are_never_written():
    net, cond = teacher(), Cond(torch.tensor([0, 1, 9]))
    e = net.embed(ids())
    dropped = net(e, net.null(cond)).logits
    assert torch.equal(dropped, net(e, Cond(torch.full((3,), 10))).logits)
    assert not torch.allclose(dropped, net(e, cond).logits)
    assert cond.labels.tolist() == [0, 1, 9]


def test_the_class_token_is_the_last_of_the_sequence():
    net = teacher()
    seen = []
    net.first_layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    e = net.embed(ids())
    net(e, Cond(torch.tensor([4, 4, 4])))
    assert seen[0].shape == (3, SHAPE.L + 1, 48)
    torch.testing.assert_close(seen[0][:, :-1], e + net.pos_emb[:, :-1])
    torch.testing.assert_close(seen[0][:, -1], (net.class_emb.weight[4] + net.pos_emb[0, -1]).expand(3, -1))


def test_norms_before_or_after():
    plain, before = teacher(), teacher(pre_norm=True)
    e, cond = plain.embed(ids()), Cond(torch.zeros(3, dtype=torch.int64))
    for net, normalized in ((plain, True), (before, False)):
        last = net(e, cond, features=(1,)).features[0]
        assert torch.allclose(last.mean(-1), torch.zeros(()), atol=1e-5) == normalized
    assert {k for k in before.state_dict() if k not in plain.state_dict()} == {
        "norm_after_transformer.weight",
        "norm_after_transformer.bias",
    }


def test_frozen_are_the_input_projection_and_the_positions():
    net = teacher()
    assert {n for n, _ in net.named_parameters() if n.startswith(net.frozen())} == {
        "input_proj.weight",
        "input_proj.bias",
        "pos_emb",
    }
    assert net.layers() == tuple(net.transformer.layers)


def test_dropout_in_training_mode_only():
    net, e, cond = teacher(), teacher().embed(ids()), Cond(torch.zeros(3, dtype=torch.int64))
    assert torch.equal(net(e, cond).logits, net(e, cond).logits)
    net.train()
    assert not torch.equal(net(e, cond).logits, net(e, cond).logits)


def test_soft_embeddings_keep_their_precision_under_autocast():
    net = teacher()
    probs = torch.rand(3, SHAPE.L, 2, 8, generator=rng()).softmax(-1)
    exact, cond = net.soften(probs), Cond(torch.zeros(3, dtype=torch.int64))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.soften(probs), exact)
        assert net(exact, cond).logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "settings", "classes", "message"),
    [
        (None, {}, 3, "needs a tokenizer"),
        (TokenShape(2, 2, 1, 6), {}, 3, "needs tokens made of bits; the tokenizer gives 6 classes"),
        (SHAPE, {}, 11, "the data has 11 classes, the teacher `maskbit` 10; raise classes"),
        (SHAPE, {"heads": 5}, 3, "heads: 5 does not divide width: 48"),
    ],
)
def test_impossible_settings(shape, settings, classes, message):
    with pytest.raises(RecipeError, match=message):
        MaskBit(**SIZES | settings).build(context(shape, classes))


def test_sides_and_groups_that_do_not_fit():
    with pytest.raises(RecipeError, match="multiples of 16; images are 40 x 32"):
        MaskBitLFQ().token_shape(ImageShape(3, 40, 32))
    with pytest.raises(RecipeError, match="groups: 3 does not divide bits: 10"):
        MaskBitLFQ(bits=10, groups=3).token_shape(IMAGE)
    with pytest.raises(ValueError, match=r"images \(1, 3, 9, 8\), but the tokenizer was built for \(3, 8, 8\)"):
        tokenizer().encode(torch.zeros(1, 3, 9, 8))


def test_channels_are_bits_and_zero_is_the_bit_0():
    net = tokenizer(groups=2)
    z = torch.full((1, 6, 4, 4), -1.0)
    z[0, :, 1, 2] = torch.tensor([0.5, -1.0, 0.0, 0.1, -0.2, 2.0])
    net.encoder.forward = lambda img: z
    tokens = net.encode(torch.zeros(1, *IMAGE))
    assert tokens[0, 6].tolist() == [0b001, 0b101]
    assert tokens.sum() == 6


def test_groups_do_not_change_the_image():
    one, two = tokenizer(groups=1), tokenizer(groups=2)
    whole = torch.randint(64, (2, 16), generator=rng())
    assert torch.equal(one.decode(whole[..., None]), two.decode(torch.stack([whole % 8, whole // 8], -1)))


def test_soft_decoding_is_linear_before_the_decoder():
    net = tokenizer()
    seen = []
    net.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    p, q = torch.rand(2, 2, 16, 2, 8, generator=rng()).softmax(-1)
    for probs in (p, q, 0.3 * p + 0.7 * q):
        net.decode_soft(probs)
    torch.testing.assert_close(seen[2], 0.3 * seen[0] + 0.7 * seen[1])


@pytest.mark.parametrize(("n", "stride", "pad"), [(8, 2, (0, 1)), (9, 2, (1, 1)), (8, 1, (1, 1)), (7, 1, (1, 1))])
def test_padding_keeps_the_size_and_favors_right_and_bottom(n, stride, pad):
    conv = SameConv(1, 1, 3, stride, bias=False)
    x = torch.rand(1, 1, n, n, generator=rng())
    padded = functional.pad(x, (*pad, *pad))
    torch.testing.assert_close(conv(x), functional.conv2d(padded, conv.weight, stride=stride))
    assert conv(x).shape[-1] == -(-n // stride)


def test_the_tokenizer_is_not_trained_here():
    with pytest.raises(NotImplementedError, match="give it weights"):
        tokenizer().loss(torch.rand(1, *IMAGE), rng(), 0.0)


@pytest.mark.parametrize(("w", "power", "steps"), [(7.1, 3.0, 64), (6.4, 2.5, 12), (5.0, 2.5, 1)])
def test_schedules_of_the_sampler(w, power, steps):
    """Against a plain computation; `tests/math` compares counts and ramps with recorded ones."""
    sampler = Sampler(steps=steps, guidance={"scale": to_scale(w, "maskbit"), "ramp": "cosine", "power": power})
    units = torch.arange(steps, dtype=torch.float64) / steps
    ramp = 1 + w * (1 - (torch.pi * units**power).cos()) / 2
    assert torch.tensor([sampler.scale(i) for i in range(steps)], dtype=torch.float64).allclose(ramp)
    assert sampler.passes() == 2 * steps - 1
    assert sampler.noise(steps - 1) == 0
    assert sampler.noise(0) == pytest.approx(sampler.choice_temperature * (1 - 1 / steps))
    counts = sampler.counts(CountingTeacher(TokenShape(16, 16, 2, 4)))
    assert sum(counts) == 512
    assert all(n > 0 for n in counts)
    masked = [512 - sum(counts[:i]) for i in range(steps)]
    assert masked == [int(512 * torch.arccos(u.float()) / (torch.pi / 2)) for u in units]


def public(path, state):
    torch.save(state, path)
    return path


@pytest.fixture
def state():
    return load_file(DATA / "maskbit_tiny.safetensors")


def load(path, shape=SHAPE, **settings):
    spec = MaskBit(**SIZES | settings)
    net = spec.build(context(shape))
    spec.load_weights(net, path)
    return net


@pytest.mark.parametrize("spelling", ["input_proj", "token_emb"])
@pytest.mark.parametrize("suffix", [".bin", ".pth", ".safetensors"])
def test_public_files_are_read_in_both_spellings(spelling, suffix, state, tmp_path):
    renamed = {k.replace("input_proj", spelling): v for k, v in state.items()}
    path = tmp_path / f"weights{suffix}"
    save_file(renamed, path) if suffix == ".safetensors" else torch.save(renamed, path)
    assert torch.equal(load(path).input_proj.weight, state["input_proj.weight"].float())


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        (TokenShape(4, 4, 2, 4), {}, "MaskBit with tokenizer.bits: 6; the recipe says tokenizer.bits: 4"),
        (TokenShape(4, 4, 1, 64), {}, "with tokenizer.groups: 2; the recipe says tokenizer.groups: 1"),
        (SHAPE, {"depth": 3}, "with depth: 2; the recipe says depth: 3"),
        (SHAPE, {"width": 40}, "with width: 48; the recipe says width: 40"),
        (SHAPE, {"mlp": 96}, "with mlp: 80; the recipe says mlp: 96"),
        (SHAPE, {"classes": 9}, "with classes: 10; the recipe says classes: 9"),
        (SHAPE, {"pre_norm": True}, "with pre_norm: False; the recipe says pre_norm: True"),
        (TokenShape(3, 4, 2, 8), {}, "with tokens: 16; the recipe says tokens: 12"),
    ],
)
def test_other_sizes_name_the_setting(shape, settings, message, state, tmp_path):
    with pytest.raises(WeightsError, match=message):
        load(public(tmp_path / "w.bin", state), shape, **settings)


def test_another_number_of_heads_than_the_public_weights_have():
    spec = MaskBit(heads=8)
    with pytest.raises(WeightsError, match=r"has 16 heads.*Change it to heads: 16"):
        spec.load_weights(torch.nn.Identity(), Path("maskbit_generator_14bit.bin"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("transformer.layers.1.0.norm.bias"), "missing: transformer.layers.1.0.norm.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda s: s.update(token_emb_weight=torch.zeros(1)), "unexpected: input_proj_weight"),
    ],
)
def test_missing_and_unexpected_keys_are_named(change, message, state, tmp_path):
    change(state)
    with pytest.raises(WeightsError, match=message):
        load(public(tmp_path / "w.bin", state))


def test_files_that_are_none(state, tmp_path):
    whole = public(tmp_path / "w.bin", state).read_bytes()
    (tmp_path / "half.bin").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "code.bin").write_bytes(pickle.dumps({"a": print}))
    public(tmp_path / "other.bin", load_file(DATA / "maskbit_tokenizer_tiny.safetensors"))
    for name, message in (("half", "damaged"), ("code", "never run|damaged"), ("other", "another model, not MaskBit")):
        with pytest.raises(WeightsError, match=message):
            load(tmp_path / f"{name}.bin")


def test_the_tokenizers_file():
    path = DATA / "maskbit_tokenizer_tiny.safetensors"
    for settings, message in (
        ({"bits": 8}, "with bits: 6; the recipe says bits: 8"),
        ({"width": 64}, "with width: 32; the recipe says width: 64"),
        ({"blocks": 2}, "with blocks: 1; the recipe says blocks: 2"),
        ({"multipliers": (1, 1)}, "shape of encoder.down.0.res_blocks.0.conv1.weight"),
        ({"resample": False}, "unexpected: encoder.down.0.down_conv.weight"),
    ):
        spec = MaskBitLFQ(**TOKENIZER | settings)
        with pytest.raises(WeightsError, match=message):
            spec.load_weights(spec.build(context()), path)
    spec = MaskBitLFQ(**TOKENIZER)
    spec.load_weights(spec.build(context()), path)
