"""Both public MaskGITs and their tokenizers: recorded outputs of the public code, and keys and shapes of its files."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks import parity_checks as checks
from benchmarks.parity_checks.case import Case
from benchmarks.parity_checks.registry import find, run
from softdimo.kinds import Cond, Context, ImageShape, TokenShape
from softdimo_plugins.lora import Lora, LoraTeacher
from softdimo_plugins.losses.dimo import DiMOTerm
from softdimo_plugins.samplers.maskgit import MaskGIT
from softdimo_plugins.teachers import halton, maskgit
from softdimo_plugins.teachers.halton import Halton
from softdimo_plugins.teachers.maskgit import MaskGit
from softdimo_plugins.tokenizers import vqgan
from softdimo_plugins.tokenizers.vqgan import VQGAN, LlamaGenVQ

DATA = Path(__file__).parents[1] / "data"
NAMES = ("maskgit_tiny", "maskgit_trace", "maskgit_dimo", "halton_tiny", "vqgan_tiny", "schedules")


def wrong(name):
    """The outputs of a recording that are not met."""
    path = DATA / f"{name}.json"
    return [gap.output for gap in run(path, find(path)).gaps if not gap.ok]


@pytest.mark.parametrize("name", NAMES)
def test_recorded_outputs_are_met(name):
    assert not wrong(name)


class FewerHeads(maskgit.SelfAttention):
    """What a wrong head count does: the weights fit, the outputs are others."""

    def __init__(self, width, heads, dropout):
        super().__init__(width, heads // 2, dropout)


class OtherSide(vqgan.Resample):
    """Halving pads left and top."""

    def forward(self, x):
        return self.conv(functional.pad(x, (1, 0, 1, 0))) if self.halve else super().forward(x)


def swapped(width, n):
    """The modulation's vectors in another order."""

    class Flipped(nn.Unflatten):
        def forward(self, x):
            return super().forward(x).flip(1)

    return nn.Sequential(nn.SiLU(), nn.Linear(width, n * width), Flipped(-1, (n, width)))


PLAIN_GELU = nn.GELU


@pytest.mark.parametrize(
    ("name", "module", "what", "instead"),
    [
        ("maskgit_tiny", maskgit, "EPS", 1e-3),
        ("maskgit_tiny", maskgit.nn, "GELU", lambda: PLAIN_GELU("tanh")),
        ("maskgit_tiny", maskgit, "SelfAttention", FewerHeads),
        ("maskgit_trace", MaskGIT, "noise", lambda sampler, step: sampler.choice_temperature),
        ("maskgit_trace", MaskGIT, "progress", lambda sampler, step: step / sampler.steps),
        ("maskgit_dimo", DiMOTerm, "_scale", lambda term, mask: 1.9),
        ("halton_tiny", halton, "EPS", 1e-3),
        ("halton_tiny", halton, "modulation", swapped),
        ("vqgan_tiny", vqgan, "EPS", 1e-4),
        ("vqgan_tiny", vqgan, "Resample", OtherSide),
        ("vqgan_tiny", VQGAN, "normalized", True),
        ("schedules", MaskGIT, "progress", lambda sampler, step: step / sampler.steps),
    ],
)
def test_a_deviation_is_noticed(name, module, what, instead, monkeypatch):
    monkeypatch.setattr(module, what, instead)
    assert wrong(name)


@pytest.mark.parametrize("name", ["maskgit_tiny", "halton_tiny"])
def test_our_logits_are_the_published_ones_without_the_masks(name):
    """The mask's logit is left out, nothing else changes; a forced one-hot sampler can never draw the mask."""
    path = DATA / f"{name}.json"
    case = Case.load(path)
    net = {"maskgit_tiny": checks.maskgit, "halton_tiny": checks.halton}[name].network(case).net
    K = net.shape.V
    net.outputs = K
    x = case["tokens"].flatten(1)[..., None]
    ours = net(net.embed(x), Cond(case["labels"])).logits[:, :, 0]
    assert ours.shape[-1] == K
    assert (ours - case["logits_cond"][..., :K]).abs().max() <= 1e-5
    unconditional = net(net.embed(x), net.null(Cond(case["labels"]))).logits[:, :, 0]
    assert (unconditional - case["logits_uncond"][..., :K]).abs().max() <= 1e-5
    hard = functional.one_hot(x.clamp(max=K - 1), K).float()
    assert torch.equal(net.embed(x), net.soften(hard, x == K))


def keys(net):
    return {key: tuple(t.shape) for key, t in net.state_dict().items()}


def built(spec, size=256, tokens=None):
    """The network on the meta device, for images or tokens of this size."""
    image = ImageShape(3, size, size)
    with torch.device("meta"):
        return spec.build(Context(image, ("",) * 1000, None, tokens))


def fits(spec, net, theirs, buffers=()):
    """The public keys, renamed, are ours with the same shapes; what is left over are these buffers."""
    mapped = {spec.published.rename(key): tuple(shape) for key, shape in theirs.items()}
    assert len(mapped) == len(theirs)
    kept = {key: shape for key, shape in mapped.items() if not key.startswith(spec.published.beside)}
    assert keys(net) == kept
    assert set(theirs) - {key for key in theirs if spec.published.rename(key) in kept} == set(buffers)
    assert spec.published.sizes(kept) == spec.published.sizes(keys(net))


SHAPES = json.loads((DATA / "shapes_maskgit.json").read_text()) | json.loads((DATA / "shapes_halton.json").read_text())


@pytest.mark.parametrize("size", [256, 512])
def test_the_full_size_has_the_keys_and_shapes_of_the_public_generator(size):
    full = SHAPES["generator_256"]
    theirs = full["tensors"] | (SHAPES["generator_512"]["changed"] if size == 512 else {})
    spec = MaskGit()
    net = built(spec, size, VQGAN().token_shape(ImageShape(3, size, size)))
    fits(spec, net, theirs, full["buffers"])
    assert sum(p.numel() for p in net.parameters()) == SHAPES[f"generator_{size}"]["num_parameters"]


def test_every_key_of_the_public_generator_is_ours_but_for_the_projections():
    """The table of renames is all there is between the public names and ours."""
    theirs = set(SHAPES["generator_256"]["tensors"])
    ours = set(keys(built(MaskGit(), 256, TokenShape(16, 16, 1, 1024))))
    assert {key.replace("in_proj_", "in_proj.") for key in theirs} == ours


@pytest.mark.parametrize(
    ("spec", "name"), [(VQGAN(), "tokenizer"), (LlamaGenVQ(), "tokenizer_vq_ds16_c2i")], ids=["vqgan", "llamagen"]
)
def test_the_full_size_has_the_keys_and_shapes_of_the_public_tokenizer(spec, name):
    full = SHAPES[name]
    net = built(spec)
    fits(spec, net, full["tensors"], full["buffers"])
    assert sum(p.numel() for p in net.parameters()) == full["num_parameters"]
    assert net.shape == TokenShape(16, 16, 1, full["config"].get("n_embed") or full["config"]["codebook_size"])


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("ImageNet")])
def test_the_full_sizes_have_the_keys_and_shapes_of_the_newer_generators(name):
    full = SHAPES[name]
    c = full["config"]
    spec = Halton(width=c["hidden_dim"], depth=c["depth"], heads=c["heads"])
    assert spec.public_heads[spec.width, spec.depth] == c["heads"]
    theirs = {key.format(i=i): shape for key, shape in full["tensors"].items() for i in range(full["layers"])}
    net = built(spec, 256, TokenShape(c["grid"], c["grid"], 1, c["codebook_size"]))
    fits(spec, net, theirs)
    assert len(theirs) == full["num_keys"]
    assert sum(p.numel() for p in net.parameters()) == full["num_parameters"]


def test_the_defaults_are_the_public_sizes():
    c = SHAPES["generator_256"]["config"]
    spec = MaskGit()
    assert (spec.width, spec.depth, spec.heads, spec.mlp, spec.classes, spec.dropout) == (
        c["hidden_dim"], c["depth"], c["heads"], c["mlp_dim"], c["nclass"], c["dropout"],
    )  # fmt: skip
    c = SHAPES["ImageNet_256_base"]["config"]
    assert (Halton().width, Halton().depth, Halton().heads) == (c["hidden_dim"], c["depth"], c["heads"])


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    context = Context(ImageShape(3, 4, 4), ("a",), None, TokenShape(2, 2, 1, 5))
    for spec in (
        MaskGit(width=16, depth=1, heads=2, mlp=16, classes=1),
        Halton(width=16, depth=1, heads=2, dropout=0.1),
    ):
        net, x = spec.build(context), torch.zeros(1, 4, 1, dtype=torch.long)
        first, second = (net.train()(net.embed(x), Cond(torch.zeros(1, dtype=torch.long))).logits for _ in range(2))
        assert not torch.equal(first, second)
        first, second = (net.eval()(net.embed(x), Cond(torch.zeros(1, dtype=torch.long))).logits for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("spec", [MaskGit, Halton])
def test_adapters_reach_every_linear_layer_of_a_block(spec):
    """Queries, keys and values too, although MaskGIT's public weights hold them as plain tensors."""
    torch.manual_seed(0)
    context = Context(ImageShape(3, 4, 4), ("a",), None, TokenShape(2, 2, 1, 5))
    net = spec(width=16, depth=2, heads=2, classes=1).build(context).eval()
    adapted = LoraTeacher(net, Lora(use="lora", rank=2)).eval()
    named = dict(net.layers()[0].named_parameters())
    in_blocks = [name for name in adapted.adapters if "layers/" in name]
    assert len(in_blocks) == 2 * sum(p.ndim == 2 for p in named.values())
    x, cond = torch.full((1, 4, 1), 5), Cond(torch.zeros(1, dtype=torch.long))
    assert torch.equal(adapted(adapted.embed(x), cond).logits, net(net.embed(x), cond).logits)
