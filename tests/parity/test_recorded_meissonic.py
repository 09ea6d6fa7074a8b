"""Meissonic as it was published: recorded outputs of the public code, and keys and shapes of the public files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.parity_checks import meissonic_dimo
from benchmarks.parity_checks.registry import find, run
from softdimo.kinds import Context, ImageShape, TokenShape
from softdimo_plugins.losses.dimo import DiMOTerm
from softdimo_plugins.samplers.maskgit import MaskGIT
from softdimo_plugins.samplers.meissonic import Meissonic as Sampler
from softdimo_plugins.teachers import meissonic as teachers
from softdimo_plugins.teachers.meissonic import MeissonicTeacher
from softdimo_plugins.tokenizers import meissonic as tokenizers

DATA = Path(__file__).parents[1] / "data"
NETWORK, TOKENIZER, SAMPLER, DIMO = (f"meissonic{part}_tiny" for part in ("", "_vqvae", "_sampler", "_dimo"))
ROTATION, HEAD, EMBED = MeissonicTeacher.rotation, MeissonicTeacher.head, MeissonicTeacher.embed


def wrong(name):
    """The outputs of a recording that are not met."""
    path = DATA / f"{name}.json"
    return [gap.output for gap in run(path, find(path)).gaps if not gap.ok]


@pytest.mark.parametrize("name", [NETWORK, TOKENIZER, SAMPLER, DIMO])
def test_recorded_outputs_are_met(name):
    assert not wrong(name)


def all_turned(net, text, device):
    """Text stands where the tokens are."""
    cosines, sines = ROTATION(net, text, device)
    return cosines.roll(text, 0), sines.roll(text, 0)


def first_row(net, tokens):
    """The mask is the row after the codes."""
    rows = net.stem.embeddings.weight
    with torch.no_grad():
        rows[net.shape.V], rows[-1] = rows[-1].clone(), rows[net.shape.V].clone()
    return EMBED(net, tokens)


class Unnormed(teachers.HeadNorm):
    """Queries and keys as they are."""

    def forward(self, x):
        return x


def sharpened(table, probs, top_k):
    """Mixtures nearer to the most probable code."""
    return probs.square() / probs.square().sum(-1, keepdim=True) @ table


def counting_up(sampler, net, tokens, cond, at, step):
    """The network is told the steps that are done."""
    told = replace(cond, tensors={**cond.tensors, "timestep": torch.full((len(cond),), float(step))})
    return MaskGIT.predict(sampler, net, tokens, told, at, step)


@pytest.mark.parametrize(
    ("name", "module", "what", "instead"),
    [
        (NETWORK, teachers, "EPS", 1e-4),
        (NETWORK, teachers, "HeadNorm", Unnormed),
        (NETWORK, MeissonicTeacher, "rotation", all_turned),
        (NETWORK, MeissonicTeacher, "head", lambda net, x: HEAD(net, x.flip(1))),
        (NETWORK, MeissonicTeacher, "embed", first_row),
        (NETWORK, teachers, "expected", sharpened),
        (TOKENIZER, tokenizers, "expected", sharpened),
        (TOKENIZER, tokenizers.MeissonicTokenizer, "codes", lambda net: net.quantize.embedding.weight.flip(0)),
        (SAMPLER, Sampler, "noise", lambda sampler, step: sampler.choice_temperature),
        (SAMPLER, Sampler, "counts", lambda sampler, net: [10, 10, 10, 10, 24]),
        (SAMPLER, Sampler, "scale", lambda sampler, step: 8.0),
        (SAMPLER, Sampler, "predict", counting_up),
        (DIMO, DiMOTerm, "_scale", lambda term, mask: 3.9),
        (DIMO, meissonic_dimo, "SCHEDULE", "arccos"),
    ],
)
def test_a_deviation_is_noticed(name, module, what, instead, monkeypatch):
    monkeypatch.setattr(module, what, instead)
    assert wrong(name)


def shapes(name):
    return json.loads((DATA / f"shapes_{name}.json").read_text())


def fits(spec, net, theirs):
    """The public keys, renamed, are ours with the same shapes."""
    mapped = {spec.published.rename(key): tuple(shape) for key, shape in theirs["shapes"].items()}
    ours = {key: tuple(t.shape) for key, t in net.state_dict().items()}
    assert len(mapped) == theirs["num_keys"]
    assert ours == mapped
    assert sum(t.numel() for t in net.state_dict().values()) == theirs["num_elements"]
    assert spec.published.sizes(ours) == spec.published.sizes(mapped)


def test_the_full_size_has_the_keys_and_shapes_of_the_public_network():
    theirs, image, spec = shapes("meissonic"), ImageShape(3, 1024, 1024), teachers.Meissonic()
    tokens = tokenizers.MeissonicVQ().token_shape(image)
    assert tokens == TokenShape(64, 64, 1, theirs["config"]["codebook_size"])
    with torch.device("meta"):
        net = spec.build(Context(image, (), None, tokens))
    fits(spec, net, theirs)
    assert {key for key in theirs["shapes"] if spec.published.rename(key) != key} == {
        "embed.embeddings.weight", "embed.layer_norm.weight", "embed.conv.weight",
    }  # fmt: skip
    c = theirs["config"]
    assert (spec.joint, spec.single, spec.heads, list(spec.axes), spec.halve) == (
        c["num_layers"], c["num_single_layers"], c["num_attention_heads"], c["axes_dims_rope"], c["downsample"],
    )  # fmt: skip


def test_the_full_size_has_the_keys_and_shapes_of_the_public_tokenizer():
    theirs, image, spec = shapes("meissonic_vqvae"), ImageShape(3, 1024, 1024), tokenizers.MeissonicVQ()
    with torch.device("meta"):
        net = spec.build(Context(image, (), None, None))
    fits(spec, net, theirs)
    assert spec.norm_groups == theirs["config"]["norm_num_groups"]
