"""TA-TiTok: pictures from codes and text, soft codes, public files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from softdimo.errors import RecipeError, WeightsError
from softdimo.kinds import Cond, Context, ImageShape, TokenShape
from softdimo.testing import encoded
from softdimo_plugins.tokenizers.tatitok import TATiTok
from tests.helpers import rng

DATA = Path(__file__).parents[1] / "data"
IMAGE = ImageShape(3, 32, 32)
SIZES = {
    "encoder": {"width": 32, "depth": 2, "heads": 2, "patch": 8},
    "decoder": {"width": 40, "depth": 2, "heads": 4, "patch": 8},
    "tokens": 6, "codebook": 64, "dim": 8, "text_width": 24, "text_length": 7,
}  # fmt: skip
"""Those of the recorded network."""
COND = encoded(2, decoder_states=(7, 24))


def tokenizer(image=IMAGE, **settings):
    torch.manual_seed(0)
    return TATiTok.model_validate(SIZES | settings).build(Context(image, (), None)).eval()


def tokens(n=2):
    return torch.randint(64, (n, 6, 1), generator=rng())


def tower(side, **changes):
    return {side: SIZES[side] | changes}


def test_shape_is_known_from_the_settings():
    assert TATiTok().token_shape(ImageShape(3, 256, 256)) == TokenShape(1, 128, 1, 8192)
    assert tokenizer().shape == TokenShape(1, 6, 1, 64)
    for image in (ImageShape(3, 256, 128), ImageShape(3, 250, 250)):
        with pytest.raises(RecipeError, match=rf"square images .* \(16, 16\); these are {image.H} x {image.W}"):
            TATiTok().token_shape(image)
    with pytest.raises(RecipeError, match=r"decoder\.heads: 3 does not divide decoder\.width: 40"):
        tokenizer(**tower("decoder", heads=3))


def test_other_images_than_it_was_built_for():
    with pytest.raises(ValueError, match=r"images \(1, 3, 32, 64\), but the tokenizer was built for \(3, 32, 32\)"):
        tokenizer().encode(torch.rand(1, 3, 32, 64))


def test_decoding_reads_the_text():
    net = tokenizer()
    other = Cond(COND.labels, tensors={"decoder_states": COND.tensors["decoder_states"] + 1})
    assert not torch.allclose(net.decode(tokens(), COND), net.decode(tokens(), other))
    for decode, what in ((net.decode, tokens()), (net.decode_soft, torch.full((2, 6, 1, 64), 1 / 64))):
        for cond in (None, Cond(COND.labels)):
            with pytest.raises(RecipeError, match="`tatitok` reads `decoder_states`, an encoding of the prompts"):
                decode(what, cond)
        with pytest.raises(RecipeError, match=r"of shape \[B 7 24\], and the text encoder gives \[2, 9, 24\]"):
            decode(what, encoded(2, decoder_states=(9, 24)))


def test_soft_decoding_is_of_the_expected_code():
    net = tokenizer()
    p = torch.rand(2, 6, 1, 64, generator=rng()).softmax(-1)
    torch.testing.assert_close(net.expected(p), p[:, :, 0] @ net.quantize.embedding.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.expected(p), net.expected(p.clone()))
        assert net.expected(p).dtype == torch.float32
    hard = functional.one_hot(tokens(), 64).float()
    torch.testing.assert_close(net.decode_soft(hard, COND), net.decode(tokens(), COND))


def test_gradient_reaches_every_probability():
    net = tokenizer()
    probs = torch.full((2, 6, 1, 64), 1 / 64, requires_grad=True)
    net.decode_soft(probs, COND).square().sum().backward()
    assert (probs.grad.flatten(0, 2).abs().sum(-1) > 0).all()


def test_encoding_is_of_the_nearest_code_in_full_precision():
    net = tokenizer()
    img = torch.rand(2, *IMAGE, generator=rng())
    far = torch.cdist(net.latents(img), net.quantize.embedding.weight[None])
    assert torch.equal(net.encode(img)[..., 0], far.argmin(-1))
    z = net.latents(img)
    net.latents = lambda img: z
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.encode(img)[..., 0], far.argmin(-1))


def test_it_is_not_trained_here():
    with pytest.raises(NotImplementedError, match="give it weights"):
        tokenizer().loss(torch.rand(1, *IMAGE), rng(), 0.0)


def test_the_small_version_has_the_real_ones_sizes_but_its_depth():
    small, real = TATiTok(weights="hf://a/b/c.bin").smoke(), TATiTok(fresh=True)
    assert (small.encoder.depth, small.decoder.depth) == (2, 2)
    deep = {
        side: getattr(small, side).model_copy(update={"depth": getattr(real, side).depth})
        for side in ("encoder", "decoder")
    }
    assert small.model_copy(update=deep) == real


@pytest.fixture
def state():
    return load_file(DATA / "tatitok_tiny.safetensors")


def load(path, image=IMAGE, **settings):
    spec = TATiTok.model_validate(SIZES | settings)
    net = spec.build(Context(image, (), None))
    spec.load_weights(net, path)
    return net


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_public_files_are_read_with_what_training_left_in_them(suffix, state, tmp_path):
    state["quantize.embed_prob"] = torch.zeros(64)
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert torch.equal(load(path).quantize.embedding.weight, state["quantize.embedding.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook": 32}, "TA-TiTok VQ with codebook: 64; the recipe says codebook: 32"),
        ({"dim": 9}, "with dim: 8; the recipe says dim: 9"),
        ({"tokens": 5}, "with tokens: 6; the recipe says tokens: 5"),
        ({"text_width": 20}, "with text_width: 24; the recipe says text_width: 20"),
        ({"text_length": 77}, "with text_length: 7; the recipe says text_length: 77"),
        (tower("encoder", depth=1), "with encoder.depth: 2; the recipe says encoder.depth: 1"),
        (tower("decoder", width=48), "with decoder.width: 40; the recipe says decoder.width: 48"),
        (tower("encoder", patch=4), "with encoder.patch: 8, patches of the encoder's images: 16; the recipe says"),
        (tower("decoder", patch=4), "with patches of the decoder's images: 16; the recipe says .*: 64"),
    ],
)
def test_other_sizes_name_the_setting(settings, message):
    with pytest.raises(WeightsError, match=message):
        load(DATA / "tatitok_tiny.safetensors", **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.mask_token"), "missing: decoder.mask_token"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
    ],
)
def test_missing_and_unexpected_keys_are_named(change, message, state, tmp_path):
    change(state)
    torch.save(state, path := tmp_path / "w.bin")
    with pytest.raises(WeightsError, match=message):
        load(path)


@pytest.mark.parametrize(("side", "heads"), [("encoder", 12), ("decoder", 16)])
def test_another_number_of_heads_than_the_public_weights_have(side, heads):
    spec = TATiTok.model_validate({side: {"heads": heads // 2}})
    with pytest.raises(WeightsError, match=rf"has {heads} heads, .*Change it to {side}\.heads: {heads}"):
        spec.load_weights(torch.nn.Identity(), Path("tatitok_bl128_vq.bin"))
