"""Inception features against torch-fidelity's own network, the rules before it, and how its weights are read."""

import sys

import pytest
import torch
from torch import nn

from softdimo.errors import PluginError, WeightsError
from softdimo.kinds import Context, ImageShape
from softdimo.math.digest import digest_module
from softdimo.spec import RecipeRef
from softdimo_plugins.features.inception import FILE, Inception, legacy, tf_bilinear, to_bytes, to_range


def build(**settings):
    spec = Inception(use="inception", fresh=True, **settings)
    torch.manual_seed(0)
    return spec.build(Context(ImageShape(3, 32, 32), (), make=lambda spec: spec)).eval()


@pytest.fixture(scope="module")
def net():
    """Random weights under which signals neither die nor explode, so that every layer matters."""
    net = build()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.weight.uniform_(0.8, 1.2)
    return net


def public(net, counters=True):
    """The state dict as torch-fidelity writes it."""
    state = {key.removeprefix("trunk."): value for key, value in net.state_dict().items()}
    norms = [key.removesuffix("running_mean") for key in state if key.endswith("running_mean")]
    return state | ({f"{n}num_batches_tracked": torch.tensor(7) for n in norms} if counters else {})


def pixels(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_it_is_the_network_of_torch_fidelity(net, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as port

    monkeypatch.setattr(port, "load_state_dict_from_url", lambda *a, **k: public(net))
    theirs = port.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], verbose=False)
    x = pixels(2, 3, 40, 64)
    with torch.no_grad():
        features, logits = net(x.float() / 255)
        expected = theirs(x)
    assert features.shape == (2, net.width) == (2, 2048)
    assert logits.shape == (2, 1008)
    assert features.std() > 0.01
    assert torch.equal(features, expected[0])
    assert torch.equal(logits, expected[1])


def test_gray_images_and_autocast(net):
    gray = torch.rand(1, 1, 30, 30, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = net(gray.expand(-1, 3, -1, -1))
        with torch.autocast("cpu", torch.bfloat16):
            found = net(gray)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("counters", [True, False])
def test_the_public_file_is_read_with_and_without_counters(net, counters, tmp_path):
    file = tmp_path / FILE
    torch.save(public(net, counters), file)
    fresh = build()
    assert digest_module(fresh) != digest_module(net)
    Inception(use="inception", weights=str(file)).load_weights(fresh, file)
    assert digest_module(fresh) == digest_module(net)


def test_another_file_is_refused(net, tmp_path):
    file = tmp_path / "other.pth"
    for state, message in (
        (public(net) | {"fc.weight": torch.zeros(1000, 2048)}, "with classes: 1000; the recipe says classes: 1008"),
        ({"conv1.weight": torch.zeros(3)}, "holds another model, not Inception-v3"),
        ({k: v for k, v in public(net).items() if "Mixed_6b" not in k}, "missing: trunk.Mixed_6b"),
    ):
        torch.save(state, file)
        with pytest.raises(WeightsError, match=message):
            Inception(use="inception").load_weights(build(), file)


def test_without_weights_it_says_which_file_to_fetch():
    with pytest.raises(WeightsError, match=f"fetch https://github.com/toshas/.*{FILE} and name the file"):
        Inception(use="inception").build(Context(ImageShape(3, 8, 8), (), make=lambda spec: spec))


def test_a_tiny_version_takes_random_weights():
    small = Inception(use="inception", weights="somewhere.pth", uint8="round").smoke()
    assert (small.weights, small.ready(), small.uint8) == (None, True, "round")
    ours = Inception(use="inception", weights=RecipeRef(recipe="x.yaml"))
    assert ours.smoke() == ours


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(PluginError, match=r"pip install 'softdimo\[fid\]'"):
        build()


# the rules before the network


def test_rules_of_bytes():
    x = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 1.4 / 255, 254.6 / 255, 1.0, 1.1]).view(1, 1, 1, 8)
    expected = {
        "truncate": [0, 0, 0, 0, 1, 254, 255, 255],
        "round": [0, 0, 0, 1, 1, 255, 255, 255],
        "adm": [0, 0, 0, 1, 1, 255, 255, 255],
    }
    assert {rule: to_bytes(to_range(x, rule)).flatten().tolist() for rule in expected} == expected


def test_stretch_takes_each_image_to_all_of_0_to_255():
    x = torch.tensor([[0.2, 0.3, 0.6], [0.5, 0.5, 0.5], [0.0, 0.5, 1.0]]).view(3, 1, 1, 3)
    assert to_bytes(to_range(x, "stretch")).view(3, 3).tolist() == [[0, 63, 255], [0, 0, 0], [0, 127, 255]]


@pytest.mark.parametrize("rule", ["truncate", "round", "adm"])
def test_bytes_survive_the_way_through_images(rule):
    """Real images and those of a reference file are bytes already."""
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_bytes(to_range(x.float() / 255, rule)), x)


def bilinear_by_hand(x, size):
    """TensorFlow 1's rule in float64, one axis after the other: output i reads at i * input / size."""
    for axis in (2, 3):
        n = x.shape[axis]
        at = torch.arange(size, dtype=torch.float64) * n / size
        low = at.long()
        high, part = (low + 1).clamp_max(n - 1), (at - low).view([-1, 1] if axis == 2 else [1, -1])
        x = x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part
    return x


@pytest.mark.parametrize("size", [(32, 32), (256, 256), (20, 400)])
def test_both_resizes_are_tensorflow_1s(size):
    x = pixels(2, 3, *size)
    expected = bilinear_by_hand(x.double(), 299)
    for resize in (tf_bilinear, legacy):
        found = resize(x.float())
        assert found.shape == (2, 3, 299, 299)
        assert (found - expected).abs().max() < 2e-2, "of 255: the grid is rounded to float32"
    half_pixel = nn.functional.interpolate(x.double(), (299, 299), mode="bilinear")
    assert (half_pixel - expected).abs().max() > 10, "torch's rule is another one"


def test_settings_tell_the_rules_apart():
    assert build(uint8="stretch", resize="legacy").settings() == {"uint8": "stretch", "resize": "legacy"}
