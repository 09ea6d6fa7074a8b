"""Meissonic's tokenizer, and files of both networks: a folder of diffusers, its config.json, one file, our own."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from softdimo.build import locate, unavailable
from softdimo.errors import PluginError, RecipeError, WeightsError
from softdimo.files import save_weights
from softdimo.kinds import Context, ImageShape, TokenShape
from softdimo.memory.imitation import Imitation, Live
from softdimo_plugins.teachers.meissonic import Meissonic
from softdimo_plugins.tokenizers.meissonic import MeissonicVQ
from tests.helpers import rng

DATA = Path(__file__).parents[1] / "data"
IMAGE = ImageShape(3, 16, 24)
TEACHER = Meissonic(width=32, joint=2, single=3, heads=2, axes=(4, 6, 6), text_width=24, spare=16)
TOKENIZER = MeissonicVQ(widths=(8, 16), latent=8, dim=8, codebook=64, blocks=1, norm_groups=8)
"""The sizes of the recorded networks."""
NETWORKS = {"meissonic": TEACHER, "meissonic_vqvae": TOKENIZER}
every = pytest.mark.parametrize("name", NETWORKS)


def build(spec, image=IMAGE, seed=0):
    torch.manual_seed(seed)
    return spec.build(Context(image, (), None, TokenShape(8, 12, 1, 64))).requires_grad_(False).eval()


def loaded(spec, weights):
    net = build(spec)
    spec.load_weights(net, locate(str(weights), unavailable))
    return net


def refusal(spec, weights):
    with pytest.raises(WeightsError) as caught:
        loaded(spec, weights)
    return str(caught.value)


def public(name):
    return load_file(DATA / f"{name}_tiny.safetensors")


def config(name):
    return json.loads((DATA / f"{name}_tiny.json").read_text())["config"]


def same(net, spec, name):
    theirs = {spec.published.rename(key): t for key, t in public(name).items()}
    return all(torch.equal(t, theirs[key]) for key, t in net.state_dict().items()) and len(theirs) == len(
        net.state_dict()
    )


def folder(path, name, state=None, **changes):
    """As diffusers writes it."""
    path.mkdir()
    save_file(public(name) if state is None else state, path / "diffusion_pytorch_model.safetensors")
    (path / "config.json").write_text(json.dumps({"_class_name": "X", **config(name), **changes}))
    return path


@every
def test_every_layout_of_public_files_is_read(name, tmp_path):
    spec, state = NETWORKS[name], public(name)
    wrapped = {f"_orig_mod.{key}": t for key, t in state.items()}
    save_file(wrapped, tmp_path / "compiled.safetensors")
    torch.save(state, tmp_path / "plain.bin")
    (tmp_path / "old").mkdir()
    torch.save(state, tmp_path / "old" / "diffusion_pytorch_model.bin")
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run" / "weights.safetensors", loaded(spec, tmp_path / "plain.bin").state_dict())
    places = [
        folder(tmp_path / "new", name),
        *(tmp_path / n for n in ("compiled.safetensors", "plain.bin", "old", "run")),
    ]
    for place in places:
        assert same(loaded(spec, place), spec, name), place


def test_a_run_goes_before_what_lies_beside_it(tmp_path):
    place = folder(tmp_path / "both", "meissonic")
    save_weights(place / "weights.safetensors", build(TEACHER, seed=3).state_dict())
    assert not same(loaded(TEACHER, place), TEACHER, "meissonic")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("meissonic", {"axes_dims_rope": [6, 4, 6]}, "says axes: [6, 4, 6]; the recipe says axes: [4, 6, 6]"),
        ("meissonic_vqvae", {"norm_num_groups": 4}, "says norm_groups: 4; the recipe says norm_groups: 8"),
    ],
)
def test_what_weights_do_not_show_is_read_from_the_config(name, change, message, tmp_path):
    told = refusal(NETWORKS[name], folder(tmp_path / "f", name, **change))
    assert str(tmp_path / "f" / "config.json") in told
    assert message in told
    assert told.endswith(f"Change it to {message.split('; ')[0].removeprefix('says ')}")


def test_a_config_counts_for_public_files_only_and_must_be_whole(tmp_path):
    place = folder(tmp_path / "f", "meissonic", axes_dims_rope=[6, 4, 6])
    own = place / "own.safetensors"
    save_weights(own, build(TEACHER, seed=3).state_dict())
    assert loaded(TEACHER, own) is not None
    (place / "config.json").write_text('{"axes_dims_rope": [4, 6')
    assert "config.json is damaged" in refusal(TEACHER, place)
    (place / "config.json").write_text("[]")
    assert same(loaded(TEACHER, place), TEACHER, "meissonic")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("meissonic", {"joint": 3}, "Change it to joint: 2"),
        ("meissonic", {"single": 1}, "Change it to single: 3"),
        ("meissonic", {"heads": 1, "axes": (8, 12, 12)}, "Change it to heads: 2"),
        ("meissonic", {"text_width": 8}, "Change it to text_width: 24"),
        ("meissonic", {"spare": 1}, "Change it to spare: 16"),
        ("meissonic", {"halve": False}, "Change it to halve: True"),
        ("meissonic_vqvae", {"codebook": 32}, "Change it to codebook: 64"),
        ("meissonic_vqvae", {"dim": 4}, "Change it to dim: 8"),
        ("meissonic_vqvae", {"latent": 4}, "Change it to latent: 8"),
        ("meissonic_vqvae", {"blocks": 2}, "Change it to blocks: 1"),
        ("meissonic_vqvae", {"attention": True}, "Change it to attention: False"),
        ("meissonic_vqvae", {"widths": (8, 16, 16)}, "Change it to number of widths: 2"),
        ("meissonic_vqvae", {"widths": (16, 8)}, "Change it to first of the widths: 8, last of the widths: 16"),
    ],
)
def test_other_sizes_say_what_to_change(name, settings, message):
    spec = NETWORKS[name].model_copy(update=settings)
    assert refusal(spec, DATA / f"{name}_tiny.safetensors").endswith(message)


@every
def test_missing_and_unexpected_keys_are_named(name, tmp_path):
    state = public(name)
    missing = next(key for key in state if "conv1" in key or "norm2" in key or "project_to_hidden." in key)
    del state[missing]
    save_file(state | {"extra.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    told = refusal(NETWORKS[name], tmp_path / "w.safetensors")
    assert f"missing: {missing}" in told
    assert "unexpected: extra.weight" in told


def test_the_other_network_is_another_model():
    for name, other in (("meissonic", "meissonic_vqvae"), ("meissonic_vqvae", "meissonic")):
        told = refusal(NETWORKS[name], DATA / f"{other}_tiny.safetensors")
        assert f"holds another model, not {NETWORKS[name].published.model}" in told


def test_what_cannot_be_built_is_refused(monkeypatch):
    with pytest.raises(RecipeError, match="norm_groups: 8 does not divide 12 of widths"):
        build(TOKENIZER.model_copy(update={"widths": (8, 12)}))
    with pytest.raises(RecipeError, match="sides that are multiples of 2; images are 16 x 25"):
        build(TOKENIZER, ImageShape(3, 16, 25))
    with pytest.raises(ValueError, match="was built for"):
        build(TOKENIZER).encode(torch.zeros(1, 3, 8, 8))
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.vq_model", None)
    with pytest.raises(PluginError, match=r"`meissonic_vq` needs diffusers .*pip install 'softdimo\[text\]'"):
        build(TOKENIZER)


def test_images_pass_one_by_one_or_together_with_the_same_result():
    """In double precision: kernels sum in another order for another batch."""
    found = []
    for at_once in (1, 2, None):
        net = build(TOKENIZER.model_copy(update={"at_once": at_once})).double()
        img = torch.rand(3, *IMAGE, generator=rng()).double()
        p = torch.randn(3, net.shape.L, 1, 64, generator=rng()).double().softmax(-1).requires_grad_()
        shown = net.decode_soft(p)
        shown.square().sum().backward()
        found.append((net.encode(img), net.decode(net.encode(img)), shown, p.grad))
    for other in found[:2]:
        assert torch.equal(other[0], found[2][0])
        for a, b in zip(other[1:], found[2][1:], strict=True):
            assert a.dtype == torch.float64
            assert (a - b).abs().max() <= 1e-10 * b.abs().max()


def test_the_decoders_memory_does_not_grow_with_the_batch():
    """Beside the images and the probabilities themselves, there and back."""

    def most(batch, at_once):
        spec = MeissonicVQ(widths=(32, 32), blocks=1, codebook=16, at_once=at_once)
        with Imitation("cpu", "32-true") as like:
            net = like.of(build(spec, ImageShape(3, 128, 128)))
            p = torch.empty(batch, net.shape.L, 1, 16, requires_grad=True)
            with Live() as live:
                shown = net.decode_soft(p)
                torch.autograd.backward(shown, torch.empty_like(shown))
            return live.most - 6 * shown.nbytes - 6 * p.nbytes

    assert most(4, None) > 2.5 * most(1, None)
    assert most(4, 1) < 1.1 * most(1, 1)
    assert most(4, 1) < 0.5 * most(4, None)


def test_top_k_of_one_decodes_the_most_probable_code():
    net = build(TOKENIZER.model_copy(update={"top_k": 1}))
    p = torch.randn(2, net.shape.L, 1, 64, generator=rng()).softmax(-1)
    torch.testing.assert_close(net.decode_soft(p), net.decode(p.argmax(-1)))


def test_a_tiny_version_has_a_block_of_each_kind():
    small = Meissonic(weights="x.safetensors").smoke()
    assert small == Meissonic(joint=1, single=1, fresh=True)
    assert MeissonicVQ(weights="x.safetensors").smoke() == MeissonicVQ(blocks=1, fresh=True)
