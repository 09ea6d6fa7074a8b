"""The contract of text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from softdimo.kinds import NULL, TextEncoder
from softdimo.testing.claims import left_alone, near, need, no_global_randomness, works

PROMPTS = ("a red cube", "", "two birds on a wire, oil on canvas, 1890", "naïve café, 北京 & <b>", "a cat and " * 200)
"""Short, empty, usual, of other letters, and longer than any encoder reads."""


def check_text_encoder(encoder: TextEncoder) -> None:
    """Named tensors [B ...] of any prompts: finite, the same each time, each prompt's by itself, of one shape.

    Without gradients once its weights are frozen, as the core freezes them.
    """
    encoder = encoder.requires_grad_(False).eval()
    need(isinstance(encoder.negative, str), f"`negative` is a prompt, not {encoder.negative!r}")
    with left_alone("encode", network=encoder), no_global_randomness("encode"):
        full = _encoded(encoder, PROMPTS)
        need(not any(t.requires_grad for t in full.values()), "encodings have no gradient: the encoder is frozen")
        _same(_encoded(encoder, PROMPTS), full, "must be the same when asked twice")
        back = _encoded(encoder, PROMPTS[::-1])
        _same({name: t.flip(0) for name, t in back.items()}, full, "must follow a permutation of the prompts")
        for i, prompt in enumerate(PROMPTS):
            alone = works(lambda prompt=prompt: _encoded(encoder, [prompt]), "encoding one prompt")  # type: ignore[misc]
            what = "must not depend on the other prompts, nor their shapes on any (is it padded to the longest?)"
            _same(alone, {name: t[i : i + 1] for name, t in full.items()}, what)
        _encoded(encoder, [encoder.negative])
    told = any((t[0] != t[2]).any() for t in full.values())
    need(told, "other prompts must have other encodings")


def _encoded(encoder: TextEncoder, prompts: Sequence[str]) -> Mapping[str, Tensor]:
    found = encoder.encode(prompts)
    need(isinstance(found, Mapping) and len(found) > 0, "encode gives tensors by name, one or more")
    for name, t in found.items():
        need(isinstance(name, str) and not name.startswith(NULL), f"names are texts without {NULL!r} before: {name!r}")
        need(isinstance(t, Tensor) and t.ndim > 0 and len(t) == len(prompts), f"`{name}` is [B ...], one row a prompt")
        need(torch.isfinite(t).all(), f"`{name}` must be finite")
    return found


def _same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    need(found.keys() == wanted.keys(), f"the names of encodings {what}: {list(found)} and {list(wanted)}")
    for name, t in found.items():
        near(t.float(), wanted[name].float(), f"`{name}` {what}")
