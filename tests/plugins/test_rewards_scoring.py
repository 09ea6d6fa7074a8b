"""What rewards by published networks share: prompts are read once, memory is bounded, precision is kept."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from softdimo.kinds import Cond
from softdimo_plugins.losses.augment import Augment
from softdimo_plugins.losses.reward import RewardTerm, Weighted
from softdimo_plugins.rewards.clip_score import ClipScore
from softdimo_plugins.rewards.hpsv2 import HPSv2
from softdimo_plugins.rewards.image_reward import ImageReward
from softdimo_plugins.rewards.pickscore import PickScore
from softdimo_plugins.rewards.scoring import TOGETHER, Reader
from tests.plugins.reward_networks import cond, noise
from tests.plugins.terms import context, roll
from tests.plugins.test_rewards_published import KINDS, made, small

CPU = torch.device("cpu")
WORDS = ("a red cat", "two dogs, at night", "snow", "a boat")


class Encode:
    """Each prompt becomes its length and number of words; counts what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts):
        assert len(prompts) == TOGETHER
        self.asked.append(list(dict.fromkeys(prompts)))
        return torch.tensor([[float(len(p)), float(len(p.split()))] for p in prompts])


def test_prompts_are_read_once():
    encode = Encode()
    read = Reader(encode)
    assert read(["a b", "c", "a b"], CPU).tolist() == [[3, 2], [1, 1], [3, 2]]
    assert read(["c", "d e f"], CPU).tolist() == [[1, 1], [5, 3]]
    assert encode.asked == [["a b", "c"], ["d e f"]]
    many = [f"{i:03d}" for i in range(TOGETHER + 3)]
    assert read(many, CPU).shape == (TOGETHER + 3, 2)
    assert [len(asked) for asked in encode.asked[2:]] == [TOGETHER, 3]


def test_those_that_were_asked_for_last_are_kept():
    encode = Encode()
    read = Reader(encode, remembered=2)
    for prompts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        read(prompts, CPU)
    assert encode.asked == [["a"], ["b"], ["c"], ["b"]]
    assert read(["a", "b", "c", "d"], CPU).shape == (4, 2), "a batch of more than are kept"


@pytest.mark.parametrize("kind", [ClipScore, HPSv2, PickScore, ImageReward])
def test_a_prompts_encoding_does_not_depend_on_what_else_is_asked(kind):
    """To the last bit: a resumed run, whose memory is empty, must score as the run that went on."""
    reward = made(small(kind))
    together = reward.read(cond(*WORDS), 4)[0]
    for i, word in enumerate(WORDS):
        fresh = Reader(reward.encode)
        fresh([f"other {j}" for j in range(i + 1)], CPU)
        assert torch.equal(fresh([*WORDS[i + 1 :], word], CPU)[-1], together[i])
    if kind is not ImageReward:
        assert (together.norm(dim=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_without_gradients_may_come_first(kind):
    """Encodings that are kept in inference mode serve a backward pass later."""
    reward = made(small(kind))
    img = noise(2).requires_grad_()
    with torch.inference_mode():
        before = reward(img, cond(*WORDS[:2]))
    score = reward(img, cond(*WORDS[:2]))
    torch.testing.assert_close(score.detach(), before.clone(), rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(score.sum(), img)[0].abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_groups_give_the_same_and_hold_less(kind):
    whole, groups = made(small(kind)), made(small(kind, at_once=2))
    img, words = noise(5, (24, 24)), cond(*WORDS, "a tree")

    def run(reward):
        x, held = img.clone().requires_grad_(), 0

        def pack(t):
            nonlocal held
            held += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            score = reward(x, words)
        first = torch.autograd.grad(score[2], x, retain_graph=True)[0]
        again = torch.autograd.grad(score.sum(), x)[0]
        return score.detach(), first, again, held

    expected, found = run(whole), run(groups)
    for a, b in zip(expected[:3], found[:3], strict=True):
        assert a.abs().max() > 0
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()
    assert found[3] < 0.1 * expected[3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [None, 3])
def test_scores_under_autocast_are_close_and_in_full_precision(kind, at_once):
    reward = made(small(kind, at_once=at_once))
    img = noise(4).requires_grad_()
    expected = reward(img, cond(*WORDS)).detach()
    seen = []
    handles = [m.register_forward_hook(lambda m, a, out: seen.append(out.dtype))
               for m in reward.modules() if isinstance(m, torch.nn.Linear)]  # fmt: skip
    text = reward.read(cond("another prompt"), 1)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        found = reward(img.bfloat16(), cond(*WORDS))
        fresh = reward.read(cond("yet another"), 1)
    assert torch.bfloat16 in seen, "the towers do compute in bf16"
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    assert torch.autograd.grad(found.sum(), img)[0].abs().max() > 0
    assert [t.dtype for t in text] == [t.dtype for t in fresh]
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_student_learns_from_the_prompts_of_its_batch(autocast):
    """Through the soft decode, gray images of 4 x 6, and random views of them."""
    ctx = context(double=False)
    seen = roll(ctx)
    seen.cond = replace(seen.cond, prompts=WORDS)
    pairs = [(Weighted(reward=small(kind), name=kind.__name__), made(small(kind, at_once=3))) for kind in KINDS]
    term = RewardTerm(pairs, pairs[:1], Augment(crop=0.7, views=2))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, logs = term.generator(seen)
    (g,) = torch.autograd.grad(loss, seen.logits, retain_graph=True)
    assert torch.equal(torch.autograd.grad(loss, seen.logits)[0], g)
    assert (g.flatten(1).norm(dim=1) > 0).all()
    assert set(logs) == {*(kind.__name__ for kind in KINDS), "held_out/ClipScore"}


def test_doubles_stay_doubles():
    reward = made(small(HPSv2)).double()
    assert reward(noise(2).double(), cond(*WORDS[:2])).dtype == torch.float64


def test_prompts_do_not_matter_to_the_aesthetic_reward():
    reward = made(small(KINDS[-1]))
    assert torch.equal(reward(noise(2), cond("a", "b")), reward(noise(2), Cond(torch.tensor([0, 1]))))
