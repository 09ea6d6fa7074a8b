"""The contract of text encoders notices every way of breaking it."""

from __future__ import annotations

import pytest
import torch

from softdimo.testing import check_text_encoder
from tests.helpers import refused, variant
from tests.prompted import WordsNet


def encode(net: WordsNet, prompts, change):
    found = WordsNet.encode(net, prompts)
    return change(found, prompts)


def broken(change) -> WordsNet:
    torch.manual_seed(0)
    return variant(WordsNet, encode=lambda net, prompts: encode(net, prompts, change))()


def longest(found, prompts):
    n = min(5, max(len(p) for p in prompts))
    return {**found, "states": found["states"][:, :n]}


def noisy(found, prompts):
    rng = torch.Generator()
    rng.seed()
    return {**found, "pooled": found["pooled"] + torch.randn(len(prompts), 4, generator=rng)}


def test_a_good_one_passes() -> None:
    torch.manual_seed(0)
    check_text_encoder(WordsNet())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found, prompts: [], "encode gives tensors by name"),
        (lambda found, prompts: {}, "encode gives tensors by name"),
        (lambda found, prompts: found | {"null.states": found["states"]}, "names are texts without 'null.' before"),
        (lambda found, prompts: found | {"n": torch.tensor(1.0)}, r"`n` is \[B ...\], one row a prompt"),
        (lambda found, prompts: found | {"n": torch.zeros(9, 1)}, "`n` is .*one row a prompt"),
        (lambda found, prompts: found | {"pooled": found["pooled"] / 0}, "`pooled` must be finite"),
        (lambda found, prompts: {k: t - t.mean(0) for k, t in found.items()}, "must not depend on the other prompts"),
        (longest, "must not depend on the other prompts"),
        (noisy, "must be the same when asked twice"),
        (lambda found, prompts: {k: torch.zeros_like(t) for k, t in found.items()}, "other prompts must have other"),
        (lambda found, prompts: found | {"w": torch.ones(len(prompts), requires_grad=True)}, "have no gradient"),
        (lambda found, prompts: found | {"r": 0 * torch.rand(len(prompts))}, "global random generator"),
    ],
)
def test_one_that_breaks_the_contract_is_refused(change, message: str) -> None:
    with refused(message):
        check_text_encoder(broken(change))


def test_the_unconditional_prompt_is_text() -> None:
    with refused("`negative` is a prompt"):
        check_text_encoder(variant(WordsNet, negative=property(lambda net: None, lambda net, value: None))())


def test_one_that_leaves_evaluation_mode_is_refused() -> None:
    def wakes(net, prompts):
        net.train()
        return WordsNet.encode(net, prompts)

    with refused("must leave the network in its mode"):
        check_text_encoder(variant(WordsNet, encode=wakes)())
