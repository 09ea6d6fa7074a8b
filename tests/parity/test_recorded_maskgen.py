"""MaskGen and TA-TiTok as they were published: recorded outputs of the public code, keys and shapes of its files."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.parity_checks.registry import find, run
from softdimo.kinds import Context, ImageShape, TokenShape
from softdimo_plugins.layers import SelfAttention
from softdimo_plugins.samplers.maskgen import MaskGen as Sampler
from softdimo_plugins.teachers import maskgen as teachers
from softdimo_plugins.tokenizers import tatitok as tokenizers
from softdimo_plugins.tokenizers.tatitok import TATiTok, Tower

DATA = Path(__file__).parents[1] / "data"
NETWORK, OTHER, TOKENIZER = "maskgen_tiny", "maskgen_untied_tiny", "tatitok_tiny"
GENERATOR, TATITOK = (
    json.loads((DATA / f"shapes_{name}.json").read_text()) for name in ("maskgen_vq_l", "tatitok_bl128_vq")
)
TANH = torch.nn.GELU("tanh")
IMAGE = ImageShape(3, 256, 256)


def wrong(name):
    """The outputs of a recording that are not met."""
    path = DATA / f"{name}.json"
    return [gap.output for gap in run(path, find(path)).gaps if not gap.ok]


@pytest.mark.parametrize("name", [NETWORK, OTHER, TOKENIZER])
def test_recorded_outputs_are_met(name):
    assert not wrong(name)


class RowsLast(tokenizers.Pixels):
    """Columns before rows within a patch."""

    def forward(self, x):
        return super().forward(x).transpose(2, 3)


class FewerHeads(SelfAttention):
    """What a wrong head count does: the weights fit, the outputs are others."""

    def __init__(self, width, heads):
        super().__init__(width, heads // 2)


@pytest.mark.parametrize(
    ("name", "module", "what", "instead"),
    [
        (NETWORK, teachers, "EPS", 1e-3),
        (NETWORK, teachers, "PERIOD", 10_000.0),
        (NETWORK, teachers, "score_code", lambda a, width: CODE(a, width).roll(width // 2, 1)),
        (NETWORK, teachers.MaskGenTeacher, "null", lambda net, cond: cond),
        (OTHER, teachers.MaskGenTeacher, "head", lambda net, x: x @ net.lm_head.weight.T),
        (NETWORK, Sampler, "progress", lambda sampler, step: step / sampler.steps),
        (NETWORK, Sampler, "noise", lambda sampler, step: sampler.choice_temperature),
        (NETWORK, Sampler, "tau", lambda sampler, step: 1.0),
        (OTHER, Sampler, "tau", lambda sampler, step: 0.5 + 0.8 * (1 - sampler.progress(step))),
        (TOKENIZER, tokenizers, "EPS", 1e-3),
        (TOKENIZER, tokenizers, "Pixels", RowsLast),
        (TOKENIZER, tokenizers, "SelfAttention", FewerHeads),
        (TOKENIZER, tokenizers.nn, "GELU", lambda: TANH),
    ],
)
def test_a_deviation_is_noticed(name, module, what, instead, monkeypatch):
    monkeypatch.setattr(module, what, instead)
    assert wrong(name)


CODE = teachers.score_code


def keys(net):
    return {key: tuple(t.shape) for key, t in net.state_dict().items()}


def fits(spec, net, theirs):
    """The public keys, renamed, are ours with the same shapes."""
    mapped = {spec.published.rename(key): tuple(shape) for key, shape in theirs.items()}
    assert len(mapped) == len(theirs)
    assert keys(net) == mapped
    assert spec.published.sizes(mapped) == spec.published.sizes(keys(net))


def built(spec):
    with torch.device("meta"):
        return spec.build(Context(IMAGE, (), None, TATiTok().token_shape(IMAGE)))


def test_the_full_size_has_the_keys_and_shapes_of_the_public_generator():
    spec = teachers.MaskGen()
    net = built(spec)
    assert len(keys(net)) == GENERATOR["num_keys"]
    fits(spec, net, GENERATOR["shapes"])
    twice = net.tok_emb.weight.numel()  # the head is the table
    assert sum(p.numel() for p in net.parameters()) == GENERATOR["num_elements"] - twice == 604_311_552


def test_the_larger_public_size():
    """1.177 billion parameters, as published; its heads are 80 wide."""
    net = built(teachers.MaskGen(width=1280, depth=20))
    assert round(sum(p.numel() for p in net.parameters()) / 1e9, 3) == 1.177
    assert teachers.MaskGen.public_heads[1280, 20] == 16


def test_the_full_size_has_the_keys_and_shapes_of_the_public_tokenizer():
    spec = TATiTok()
    net = built(spec)
    assert len(keys(net)) == TATITOK["num_keys"]
    fits(spec, net, TATITOK["shapes"])
    assert sum(p.numel() for p in net.parameters()) == TATITOK["num_elements"]
    assert net.shape == TokenShape(1, 128, 1, 8192)


def test_the_defaults_are_the_published_settings():
    codes, c = (GENERATOR["config"]["model"][part] for part in ("vq_model", "maskgen"))
    spec, sampler, tokenizer = teachers.MaskGen(), Sampler(), TATiTok()
    assert (spec.width, spec.depth, spec.heads, spec.score_width, spec.classes, spec.aesthetic) == (
        c["decoder_embed_dim"], c["decoder_depth"], c["decoder_num_heads"], c["micro_condition_embed_dim"],
        c["condition_num_classes"], c["sample_aesthetic_score"],
    )  # fmt: skip
    assert (sampler.steps, sampler.choice_temperature, sampler.guidance.scale) == (
        c["num_iter"], c["temperature"], c["cfg"] + 1,
    )  # fmt: skip
    assert (tokenizer.codebook, tokenizer.dim, tokenizer.tokens, tokenizer.encoder.patch, tokenizer.decoder.patch) == (
        codes["codebook_size"], codes["token_size"], codes["num_latent_tokens"], codes["vit_enc_patch_size"],
        codes["vit_dec_patch_size"],
    )  # fmt: skip
    assert tokenizer.encoder == Tower(width=768, depth=12, heads=12)
    assert tokenizer.decoder == Tower(width=1024, depth=24, heads=16)
