"""The terms of L_gen: gradients at the logits, and who is in whose graph."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from softdimo.errors import PluginError
from softdimo.kinds import Context, ImageShape
from softdimo.math.divergence import Divergence
from softdimo.math.guidance import Guidance
from softdimo.math.mdm import remask
from softdimo.math.rollout import Roll
from softdimo_plugins.discriminators.pixels import Pixels
from softdimo_plugins.features.cnn import CNN
from softdimo_plugins.losses.dimo import DiMO, DiMOTerm
from softdimo_plugins.losses.gan import GAN, GANTerm
from softdimo_plugins.losses.reward import RewardLoss, RewardTerm, Weighted
from softdimo_plugins.rewards.class_log_prob import ClassLogProb, ClassLogProbReward
from softdimo_plugins.rewards.connected import Connected
from tests.helpers import Pooled
from tests.plugins.terms import B, agree, context, dimo, gan, gradient, real, roll

# The gradient at the student's logits


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fkl": lambda p, q: (q.exp() * (q - p)).sum(-1),
    "rkl": lambda p, q: (p.exp() * (p - q)).sum(-1),
    "jeffreys": lambda p, q: (1.2 * q.exp() * (q - p) - 0.2 * p.exp() * (p - q)).sum(-1),
}


@pytest.mark.parametrize("normalization", ["sum", "mean_masked"])
@pytest.mark.parametrize("share_t", [False, True])
@pytest.mark.parametrize("name", ["fkl", "rkl", "jeffreys"])
def test_dimo_gradient_is_the_closed_form_at_masked_units_and_zero_elsewhere(
    name: str, share_t: bool, normalization: str
) -> None:
    ctx = context()
    divergence = Divergence(name=name, beta=-0.2 if name == "jeffreys" else 0.0)
    term = dimo(ctx, divergence=divergence, normalization=normalization, share_t=share_t, guidance={"scale": 2.0})
    seen = roll(ctx)
    mask, _, p, q = looked_up(term, seen, 2.0)
    loss, logs = term.generator(seen)

    p = p.requires_grad_()
    value = DIVERGENCES[name](p.log_softmax(-1), q.log_softmax(-1))
    (g,) = torch.autograd.grad(value.sum(), p)
    per_sample = B if normalization == "sum" else B * mask.sum((1, 2)).view(-1, 1, 1, 1)
    expected = torch.where(mask[..., None], g / per_sample, 0)
    assert 0 < int(mask.sum()) < mask.numel()
    torch.testing.assert_close(gradient(loss, seen), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logs["divergence"], value[mask].mean().detach())


def looked_up(term: DiMOTerm, seen: Roll, scale: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mask that the term will draw, x_t, and what psi and the guided teacher say there, all [B L G V]."""
    rng = torch.Generator()
    rng.set_state(seen.rng.get_state())
    with torch.no_grad():
        mask, x_t = remask(seen.tokens, term.teacher, term.schedule, rng)
        p = term.auxiliary(term.auxiliary.embed(x_t), seen.cond).logits
        e = term.teacher.embed(x_t)
        z_c = term.teacher(e, seen.cond).logits
        z_u = term.teacher(e, term.teacher.null(seen.cond)).logits
    return mask, x_t, p, z_u + scale * (z_c - z_u)


def test_the_students_jacobian_goes_through_its_own_softmax() -> None:
    ctx = context()
    term, seen = dimo(ctx, jacobian="student"), roll(ctx)
    mask, _, p, q = looked_up(term, seen, 2.0)
    loss, _ = term.generator(seen)
    z = seen.logits.detach().requires_grad_()
    ratio = p.log_softmax(-1) - q.log_softmax(-1)
    inner = (z.softmax(-1) * ratio).sum(-1)[mask].sum() / B
    torch.testing.assert_close(gradient(loss, seen), torch.autograd.grad(inner, z)[0], rtol=1e-9, atol=1e-12)


def test_a_ramp_guides_each_sample_by_its_mask_ratio() -> None:
    ctx = context()
    term = dimo(ctx, guidance=Guidance(scale=4.0, ramp="linear"), schedule="arccos")
    seen = roll(ctx)
    mask = looked_up(term, seen, 1.0)[0]
    scale = 1 + 3 * (math.pi / 2 * mask.double().mean((1, 2))).cos()
    assert len(set(scale.tolist())) > 1
    _, _, p, q = looked_up(term, seen, scale.view(-1, 1, 1, 1))
    loss, _ = term.generator(seen)
    g = (p.softmax(-1) - q.softmax(-1)) / B
    torch.testing.assert_close(gradient(loss, seen), torch.where(mask[..., None], g, 0), rtol=1e-6, atol=1e-9)


def test_no_guidance_asks_the_teacher_once() -> None:
    ctx = context()
    assert DiMO(guidance=Guidance(scale=1.0)).passes()["teacher at x_t"] == 1
    assert DiMO(guidance=Guidance(scale=1.0, ramp="linear", start=2.0)).passes()["teacher at x_t"] == 2
    seen = roll(ctx)
    term = dimo(ctx, guidance={"scale": 1.0})
    rows: list[int] = []
    term.teacher.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    term.generator(seen)
    assert rows == [B]


def judge(seed: int) -> ClassLogProbReward:
    """A small differentiable reward on images of three channels, which is what rewards receive."""
    return ClassLogProbReward(Pooled(seed, image=ImageShape(3, 4, 6)).double().requires_grad_(False))


def rewards(ctx: Context, **settings: object) -> RewardTerm:
    pairs = [
        (Weighted(reward=Connected(use="a"), weight=w, name=n, **settings), judge(seed))  # type: ignore[arg-type]
        for n, w, seed in (("one", 0.7, 1), ("two", -0.2, 2))
    ]
    return RewardTerm(pairs, [])  # type: ignore[arg-type]


def test_reward_gradient_against_finite_differences() -> None:
    ctx = context()
    term, seen = rewards(ctx), roll(ctx)
    agree(lambda z: term.generator(replace(seen, logits=z))[0], seen.logits.detach())
    loss, logs = term.generator(seen)
    assert loss.item() == pytest.approx(-0.7 * float(logs["one"]) + 0.2 * float(logs["two"]))


def test_a_capped_reward_stops_pushing_the_samples_above_it() -> None:
    ctx = context()
    seen = roll(ctx)
    reward = judge(1)
    scores = reward(seen.images.expand(-1, 3, -1, -1), seen.cond).detach()
    cap = float(scores.sort().values[1:3].mean())
    entry = Weighted(reward=Connected(use="a"), cap=cap, name="r")
    logs = RewardTerm([(entry, reward)], []).generator(roll(ctx))[1]
    assert float(logs["r"]) == pytest.approx(float(scores.mean()))  # the log shows the reward itself
    fresh = roll(ctx)
    g = gradient(RewardTerm([(entry, reward)], []).generator(fresh)[0], fresh).abs().sum((1, 2, 3))
    assert (g > 0).tolist() == (scores < cap).tolist()


@pytest.mark.parametrize("watched", [False, True])
def test_a_reward_of_the_whole_batch_is_refused(watched: bool) -> None:
    entry = (Weighted(reward=Connected(use="a")), lambda img, cond: img.mean())
    fine = (Weighted(reward=Connected(use="b")), judge(1))
    term = RewardTerm([fine], [entry]) if watched else RewardTerm([entry], [])  # type: ignore[list-item]
    with pytest.raises(PluginError, match=rf"gives \[\] for {B} images; give one number each"):
        term.generator(roll(context()))


# Who receives gradients


def leaves(loss: Tensor) -> set[int]:
    """Every leaf tensor whose gradient a backward pass from `loss` would fill."""
    found, seen = set(), set()
    todo = [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo += [following for following, _ in node.next_functions]
    return found


def ids(net: nn.Module) -> set[int]:
    return {id(p) for p in net.parameters()}


def everyone(ctx: Context, share_t: bool = False) -> tuple[DiMOTerm, GANTerm, RewardTerm]:
    reward = ClassLogProb(classifier=CNN(use="cnn", width=4, features=4))
    settings = RewardLoss(use="reward", rewards=(Weighted(reward=reward),), held_out=(Weighted(reward=reward),))
    ctx = replace(ctx, make=lambda spec: spec.build(replace(ctx, make=lambda inner: inner.build(ctx))))
    return dimo(ctx, share_t=share_t), gan(ctx), settings.build(ctx)


@pytest.mark.parametrize("share_t", [False, True])
def test_in_the_generators_turn_no_critic_and_no_frozen_network_is_in_reach(share_t: bool) -> None:
    ctx = context(double=False)
    for term in everyone(ctx, share_t):
        seen = roll(ctx)
        reached = leaves(term.generator(seen)[0])
        assert id(seen.logits) in reached
        own = ids(term.critic) if isinstance(term, GANTerm) and term.critic is not None else set()
        # only D itself lies between its score and the logits; the engine asks for the gradient at the logits alone
        assert reached - {id(seen.logits)} <= own


@pytest.mark.parametrize("share_t", [False, True])
def test_in_the_critics_turn_only_the_terms_own_critic_is_in_reach(share_t: bool) -> None:
    ctx = context(double=False)
    for term in everyone(ctx, share_t)[:2]:
        seen = roll(ctx)
        term.generator(seen)
        assert term.critic is not None
        reached = leaves(term.critic_loss(seen.detach(), real(ctx))[0])
        assert reached <= {id(p) for p in term.critic.parameters() if p.requires_grad}
        assert reached


def test_psi_keeps_what_the_teacher_keeps_frozen() -> None:
    ctx = context(double=False)
    assert ctx.teacher is not None
    term = dimo(ctx)
    assert term.critic is not None
    for name, p in term.critic.named_parameters():
        assert p.requires_grad != name.startswith(ctx.teacher.frozen())
    assert not any(p.requires_grad for p in ctx.teacher.parameters())


# psi


def test_psi_minimizes_cross_entropy_on_the_students_tokens() -> None:
    ctx = context()
    term, seen = dimo(ctx, label_smoothing=0.1), roll(ctx)
    mask, _, p, _ = looked_up(term, seen, 1.0)
    loss, _ = term.critic_loss(seen.detach(), real(ctx))
    expected = cross_entropy(p[mask], seen.tokens[mask], label_smoothing=0.1)
    torch.testing.assert_close(loss.detach(), expected)


def test_share_t_trains_psi_on_the_sequence_it_was_queried_at() -> None:
    ctx = context()
    term, seen = dimo(ctx, share_t=True), roll(ctx)
    mask, _, p, _ = looked_up(term, seen, 1.0)
    term.generator(seen)
    state = seen.rng.get_state()
    loss, _ = term.critic_loss(seen.detach(), real(ctx))
    torch.testing.assert_close(loss.detach(), cross_entropy(p[mask], seen.tokens[mask]))
    assert torch.equal(seen.rng.get_state(), state)  # nothing was drawn
    again, _ = term.critic_loss(seen.detach(), real(ctx))  # as when the generator takes no turn
    assert not torch.equal(seen.rng.get_state(), state)
    assert again.item() != loss.item()


def test_two_dimo_terms_that_share_t_train_each_its_own_psi() -> None:
    ctx = context()
    seen = roll(ctx)
    one, two = (DiMO(use="dimo", name=name, share_t=True).build(ctx) for name in ("one", "two"))
    one.generator(seen)
    two.generator(seen)
    for term in (one, two):
        assert term.critic is not None
        assert leaves(term.critic_loss(seen.detach(), real(ctx))[0]) <= ids(term.critic)


# Refusals


def test_a_reward_without_gradient_is_refused_as_a_loss_and_accepted_as_held_out() -> None:
    ctx = context()
    plain = Weighted(reward=Connected(use="connected"))
    with pytest.raises(PluginError, match=r"`connected` is not differentiable.*held_out.*search"):
        RewardLoss(use="reward", rewards=(plain,)).build(ctx)
    classifier = ClassLogProb(use="class_log_prob", classifier=CNN(use="cnn", width=4, features=4))
    term = RewardLoss(use="reward", rewards=(Weighted(reward=classifier),), held_out=(plain,)).build(
        replace(context(double=False), make=ctx.make)
    )
    loss, logs = term.generator(roll(context(double=False)))
    assert set(logs) == {"class_log_prob", "held_out/connected"}
    assert loss.item() == pytest.approx(-float(logs["class_log_prob"]))


def test_terms_say_what_the_recipe_lacks() -> None:
    ctx = context()
    bare = replace(ctx, teacher=None, tokenizer=None)
    disc = Pixels(use="pixels")
    classifier = ClassLogProb(classifier=CNN(use="cnn"))
    for spec, missing in (
        (DiMO(use="dimo"), "teacher"),
        (GAN(use="gan", discriminator=disc), "teacher:` and a `tokenizer"),
        (RewardLoss(use="reward", rewards=(Weighted(reward=classifier),)), "tokenizer"),
    ):
        with pytest.raises(PluginError, match=f"`{missing}"):
            spec.build(bare)
    with pytest.raises(PluginError, match="at least one"):
        RewardLoss(use="reward", rewards=()).build(ctx)


def test_terms_do_not_touch_the_teacher() -> None:
    ctx = context(double=False)
    assert ctx.teacher is not None
    before = copy.deepcopy(ctx.teacher.state_dict())
    for term in everyone(ctx):
        seen = roll(ctx)
        term.generator(seen)[0].backward()
        if term.critic is not None:
            term.critic_loss(seen.detach(), real(ctx))[0].backward()
    assert all(p.grad is None for p in ctx.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in ctx.teacher.state_dict().items())


# Mask ratios within a range


@pytest.mark.parametrize("share_t", [False, True])
def test_dimo_keeps_mask_ratios_within_the_range(share_t: bool) -> None:
    ctx = context()
    term = dimo(ctx, ratios=(0.5, 0.5), share_t=share_t)
    seen = roll(ctx)
    loss, _ = term.generator(seen)
    touched = gradient(loss, seen).abs().sum(-1) > 0
    units = touched[0].numel()
    assert touched.sum((1, 2)).tolist() == [round(0.5 * units)] * B
    masked: list[int] = []
    embed = term.auxiliary.embed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(term.auxiliary, "embed", lambda t: masked.append(int((t == ctx.tokens.V).sum())) or embed(t))
        term.critic_loss(seen.detach(), real(ctx))
    assert masked == ([] if share_t else [B * round(0.5 * units)])


def test_a_range_of_mask_ratios_is_ordered() -> None:
    with pytest.raises(ValueError, match="write the lower end first"):
        DiMO(use="dimo", name="dimo", ratios=(0.9, 0.1))
