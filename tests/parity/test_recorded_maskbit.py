"""MaskBit as it was published: recorded outputs of the public code, and keys and shapes of the public files."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from benchmarks.parity_checks.registry import find, run
from softdimo.kinds import Context, ImageShape, TokenShape
from softdimo_plugins.bits import signs
from softdimo_plugins.samplers.maskbit import MaskBit as Sampler
from softdimo_plugins.teachers import maskbit as teachers
from softdimo_plugins.tokenizers import maskbit as tokenizers

DATA = Path(__file__).parents[1] / "data"
NETWORK, TOKENIZER, TRACE = "maskbit_tiny", "maskbit_tokenizer_tiny", "maskbit_trace"
SHAPES = json.loads((DATA / "shapes_maskbit.json").read_text())
TANH = torch.nn.GELU("tanh")
BITS = (10, 12, 14, 16, 18)


def wrong(name):
    """The outputs of a recording that are not met."""
    path = DATA / f"{name}.json"
    return [gap.output for gap in run(path, find(path)).gaps if not gap.ok]


@pytest.mark.parametrize("name", [NETWORK, TOKENIZER, TRACE])
def test_recorded_outputs_are_met(name):
    assert not wrong(name)


class OtherSide(torch.nn.Conv2d):
    """The larger half of an odd padding at the left and the top."""

    def forward(self, x):
        after = [n % 2 if self.stride == (2, 2) else self.kernel_size[0] // 2 for n in x.shape[:1:-1]]
        before = [self.kernel_size[0] // 2] * 2
        return super().forward(functional.pad(x, [before[0], after[0], before[1], after[1]]))


class NoSum(tokenizers.ResBlock):
    """Where the widths differ, the 1 x 1 convolution alone."""

    def forward(self, x):
        h = super().forward(x)
        if self.nin_shortcut is None:
            return h
        return h - self.conv2(functional.silu(self.norm2(self.conv1(functional.silu(self.norm1(x))))))


@pytest.mark.parametrize(
    ("name", "module", "what", "instead"),
    [
        (NETWORK, teachers, "EPS", 1e-5),
        (NETWORK, teachers, "signs", lambda bits: signs(bits).flip(-1)),
        (NETWORK, teachers.nn, "GELU", lambda: TANH),
        (
            NETWORK,
            teachers.MaskBitTeacher,
            "embed",
            lambda net, x: net._project((net.codes[x % net.shape.V]).flatten(2)),
        ),
        (TOKENIZER, tokenizers, "EPS", 1e-4),
        (TOKENIZER, tokenizers, "signs", lambda bits: signs(bits).flip(-1)),
        (TOKENIZER, tokenizers, "SameConv", OtherSide),
        (TOKENIZER, tokenizers, "ResBlock", NoSum),
        (TRACE, Sampler, "progress", lambda sampler, step: step / (sampler.steps - 1)),
        (TRACE, Sampler, "noise", lambda sampler, step: sampler.choice_temperature),
    ],
)
def test_a_deviation_is_noticed(name, module, what, instead, monkeypatch):
    monkeypatch.setattr(module, what, instead)
    assert wrong(name)


def published(kind, bits):
    """Keys -> shapes of a public file, and which of them are buffers."""
    full = SHAPES[f"{kind}_14bit"]
    shapes = dict(full["tensors"])
    if bits != 14:
        shapes |= SHAPES[f"{kind}_other_bits"][str(bits)]["changed"]
    count = full if bits == 14 else SHAPES[f"{kind}_other_bits"][str(bits)]
    return shapes, set(full["buffers"]), count["num_parameters"]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["generator", "tokenizer"])
def test_the_full_size_has_the_keys_and_shapes_of_the_public_files(kind, bits):
    image = ImageShape(3, 256, 256)
    tokenizer = tokenizers.MaskBitLFQ(bits=bits)
    tokens = tokenizer.token_shape(image)
    assert tokens == TokenShape(16, 16, 2, 2 ** (bits // 2))
    spec = teachers.MaskBit() if kind == "generator" else tokenizer
    with torch.device("meta"):
        net = spec.build(Context(image, ("",) * 1000, None, tokens))
    theirs, buffers, count = published(kind, bits)
    mapped = {spec.published.rename(key): tuple(shape) for key, shape in theirs.items()}
    kept = {key: shape for key, shape in mapped.items() if not key.startswith(spec.published.beside)}
    assert {key: tuple(t.shape) for key, t in net.state_dict().items()} == kept
    assert set(mapped) - set(kept) == buffers
    assert sum(p.numel() for p in net.parameters()) == count
    assert spec.published.sizes(kept) == spec.published.sizes({k: tuple(t.shape) for k, t in net.state_dict().items()})
