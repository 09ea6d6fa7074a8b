"""The convolutional tokenizers: shapes, one decoder for hard and soft, training, resuming."""

import pytest
import torch
from torch.nn import functional

from softdimo.errors import RecipeError
from softdimo.kinds import Context, ImageShape, TokenShape
from softdimo_plugins.data.digits import Digits
from softdimo_plugins.tokenizers.conv import ConvLFQ, ConvVQ

IMAGE = ImageShape(1, 8, 8)
DIGITS = {"patch": 2, "width": 8}
SPECS = {
    "vq": ConvVQ(codebook=32, **DIGITS),
    "lfq": ConvLFQ(bits=8, **DIGITS),
    "lfq1": ConvLFQ(bits=5, groups=1, **DIGITS),
}
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def unused(spec):
    raise AssertionError("a tokenizer has no nested components")


def make(spec, image=IMAGE):
    torch.manual_seed(0)
    return spec.build(Context(image, (), unused))


def noise(image, n=3):
    return torch.rand(n, *image, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def digits():
    data = Digits().build(Context(ImageShape(1, 1, 1), (), unused))
    return data.source("train").get(torch.arange(1024)).images


def train(net, images, steps, seed=0, begin=0, end=None, optimizer=None, rng=None):
    net.train()
    optimizer = optimizer or torch.optim.Adam(net.parameters(), lr=5e-3)
    rng = rng or torch.Generator().manual_seed(seed)
    logs = []
    for i in range(begin, end or steps):
        batch = images[torch.randint(len(images), (64,), generator=rng)]
        loss, log = net.loss(batch, rng, i / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logs.append({"loss": loss.item()} | {k: float(v) for k, v in log.items()})
    return logs, optimizer, rng


def error(net, images):
    net.eval()
    with torch.no_grad():
        return float((net.decode(net.encode(images)) - images).square().mean())


@pytest.mark.parametrize(
    ("image", "patch", "expected"),
    [
        ((1, 28, 28), 4, (7, 7)),
        ((1, 8, 8), 2, (4, 4)),
        ((3, 32, 32), 4, (8, 8)),
        ((3, 64, 32), 16, (4, 2)),
        ((1, 24, 40), 8, (3, 5)),
        ((1, 8, 8), 1, (8, 8)),
    ],
)
def test_shape_is_known_from_the_settings(image, patch, expected):
    image = ImageShape(*image)
    for spec, rest in (
        (ConvVQ(patch=patch, width=4, codebook=9), (1, 9)),
        (ConvLFQ(patch=patch, width=4, bits=6), (2, 8)),
    ):
        assert spec.token_shape(image) == TokenShape(*expected, *rest)
        net = make(spec, image)
        assert net.shape == spec.token_shape(image)
        tokens = net.encode(noise(image))
        assert tokens.shape == (3, expected[0] * expected[1], rest[0])
        assert 0 <= tokens.min() <= tokens.max() < rest[1]
        decoded = net.decode(tokens)
        assert decoded.shape == (3, *image)
        assert 0 <= decoded.min() <= decoded.max() <= 1


def test_impossible_shapes_say_what_is_possible():
    with pytest.raises(RecipeError, match="patch: 8 does not divide images of 28 x 28; it can be 1 or 2 or 4"):
        ConvVQ(patch=8).token_shape(ImageShape(1, 28, 28))
    with pytest.raises(RecipeError, match="takes images of 1 or 3 channels, the data has 4"):
        ConvVQ(use="conv_vq").token_shape(ImageShape(4, 28, 28))
    with pytest.raises(RecipeError, match="groups: 2 does not divide bits: 7"):
        ConvLFQ(bits=7).token_shape(ImageShape(1, 28, 28))


@specs
def test_other_images_than_it_was_built_for(spec):
    with pytest.raises(ValueError, match=r"images \(3, 3, 8, 8\), but the tokenizer was built for \(1, 8, 8\)"):
        make(spec).encode(noise((3, 8, 8)))


@specs
@pytest.mark.parametrize(("encoder", "overlap"), [("patches", 0), ("strided", 1)])
def test_what_the_encoder_sees(spec, encoder, overlap):
    net = make(spec.model_copy(update={"encoder": encoder})).eval()
    img = noise(IMAGE).requires_grad_()
    net.latents(img)[:, 5].sum().backward()  # row 1, column 1 of 4 x 4 patches
    seen = img.grad[0, 0] != 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2 - overlap : 4 + overlap, 2 - overlap : 4 + overlap] = True
    assert torch.equal(seen, expected)


@specs
def test_soft_decoding_of_one_hot_is_exactly_decoding(spec):
    net = make(spec)
    tokens = torch.randint(net.shape.V, (4, net.shape.L, net.shape.G), generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.decode_soft(functional.one_hot(tokens, net.shape.V).float()), net.decode(tokens))
    assert not torch.allclose(net.decode(tokens)[0], net.decode(tokens)[1])


@specs
def test_soft_decoding_is_of_the_expected_code(spec):
    net = make(spec)
    probs = torch.rand(2, net.shape.L, net.shape.G, net.shape.V, generator=torch.Generator().manual_seed(0))
    probs /= probs.sum(-1, keepdim=True)
    expected = torch.cat([probs[:, :, g] @ net.table()[g] for g in range(net.shape.G)], -1)
    torch.testing.assert_close(net.decode_soft(probs), net.pixels(expected).sigmoid())


@specs
def test_gradient_reaches_every_probability(spec):
    net = make(spec)
    probs = torch.full((2, net.shape.L, net.shape.G, net.shape.V), 1 / net.shape.V, requires_grad=True)
    net.decode_soft(probs).square().sum().backward()
    assert (probs.grad.flatten(0, 2).abs().sum(-1) > 0).all()


@specs
def test_encoding_does_not_depend_on_the_batch(spec, digits):
    net = make(spec)
    train(net, digits, 5)
    net.eval()
    together = net.encode(digits[:32])
    assert torch.equal(together, net.encode(digits[:32]))
    assert torch.equal(together, torch.cat([net.encode(d) for d in digits[:32].split(5)]))


@pytest.mark.parametrize(("bits", "groups"), [(6, 1), (6, 2), (6, 3), (6, 6)])
def test_bits_and_classes_are_one_to_one(bits, groups):
    net = make(ConvLFQ(bits=bits, groups=groups, **DIGITS))
    V = net.shape.V
    assert (1 << bits // groups) == V
    assert net.table().abs().unique().tolist() == [1]
    classes = torch.arange(V)[:, None, None].expand(V, 1, groups)
    z = torch.cat([net.table()[g][classes[..., g]] for g in range(groups)], -1)
    assert torch.equal(net.quantize(z), classes)


@specs
@pytest.mark.parametrize("progress", [0.0, 0.5])
@pytest.mark.parametrize("encoder", ["patches", "strided"])
def test_every_parameter_is_trained(spec, progress, encoder, digits):
    net = make(spec.model_copy(update={"encoder": encoder}))
    net.loss(digits[:64], torch.Generator().manual_seed(0), progress)[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@specs
def test_the_images_gradient_passes_the_quantization(spec, digits):
    free = {"commitment": 0.0} if isinstance(spec, ConvVQ) else {"entropy": 0.0}
    net = make(spec.model_copy(update=free))
    net.loss(digits[:64], torch.Generator().manual_seed(0), 0.5)[0].backward()
    assert all(p.grad.abs().sum() > 0 for p in net.encoder.parameters())


def test_training_again_starts_the_codebook_again(digits):
    net = make(SPECS["vq"])
    train(net, digits, 12)
    assert net.codebook.started
    net.loss(digits[:64], torch.Generator().manual_seed(0), 0.0)
    assert not net.codebook.started


@specs
def test_soft_decoding_does_not_round_the_codes(spec):
    net = make(spec)
    seen = []
    net.decoder[0].register_forward_pre_hook(lambda _, latent: seen.append(latent[0]))
    probs = torch.rand(2, net.shape.L, net.shape.G, net.shape.V, generator=torch.Generator().manual_seed(0))
    net.decode_soft(probs)
    with torch.autocast("cpu", torch.bfloat16):
        net.decode_soft(probs)
    assert torch.equal(*seen)


@specs
def test_training_learns_to_reconstruct(spec, digits):
    net = make(spec)
    before = error(net, digits)
    logs, *_ = train(net, digits, 200)
    gray = float((digits - digits.mean(0)).square().mean())
    assert error(net, digits) < min(before / 4, gray / 4)
    assert "perplexity" not in logs[0]
    assert logs[-1]["perplexity"] > net.shape.V / 4
    used = net.encode(digits).flatten(0, 1)
    assert all(len(used[:, g].unique()) > 0.9 * net.shape.V for g in range(net.shape.G))


@specs
@pytest.mark.parametrize("reconstruction", ["mse", "l1"])
def test_other_pixel_losses(spec, reconstruction):
    image = ImageShape(3, 8, 8)
    net = make(spec.model_copy(update={"reconstruction": reconstruction}), image)
    images = noise(image, 64) * 0.2 + torch.linspace(0, 0.8, 64)[:, None, None, None]
    logs, *_ = train(net, images, 60)
    assert logs[-1]["reconstruction"] < 0.7 * logs[0]["reconstruction"]


@specs
@pytest.mark.parametrize("cut", [2, 15])
def test_training_resumes_bit_for_bit(spec, cut, digits):
    steps, cut = 30, cut  # the codebook starts at step 3
    whole = make(spec)
    straight, *_ = train(whole, digits, steps)

    first = make(spec)
    begun, optimizer, rng = train(first, digits, steps, end=cut)
    saved = {k: v.clone() for k, v in first.state_dict().items()}
    second = make(spec)
    second.load_state_dict(saved)
    other = torch.optim.Adam(second.parameters(), lr=5e-3)
    other.load_state_dict(optimizer.state_dict())
    fresh = torch.Generator()
    fresh.set_state(rng.get_state())
    rest, *_ = train(second, digits, steps, begin=cut, optimizer=other, rng=fresh)

    assert begun + rest == straight
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in second.state_dict().items())


@specs
def test_randomness_comes_from_the_generator_only(spec, digits):
    before = torch.get_rng_state()
    net = make(spec)
    torch.set_rng_state(before)
    train(net, digits, 6)
    assert torch.equal(torch.get_rng_state(), before)


def test_codes_rest_before_pretraining_ends_and_when_settled(digits):
    net = make(SPECS["vq"])
    rng = torch.Generator().manual_seed(0)
    codes = lambda: net.codebook.codes.clone()  # noqa: E731
    start = codes()
    net.loss(digits[:64], rng, 0.09)
    assert torch.equal(codes(), start)
    assert not net.codebook.started
    net.loss(digits[:64], rng, 0.1)
    assert not torch.equal(codes(), start)
    assert net.codebook.started
    moving = codes()
    net.loss(digits[64:128], rng, 0.89)
    assert not torch.equal(codes(), moving)
    settled = codes()
    net.loss(digits[:64], rng, 0.9)
    assert torch.equal(codes(), settled)


@specs
def test_bf16_autocast(spec, digits):
    net = make(spec)
    train(net, digits, 10)
    net.eval()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = net.loss(digits[:32], torch.Generator().manual_seed(0), 0.5)
        decoded = net.decode(net.encode(digits[:32]))
    assert torch.isfinite(loss)
    assert decoded.dtype == torch.float32
    assert (decoded - net.decode(net.encode(digits[:32]))).abs().mean() < 0.01
