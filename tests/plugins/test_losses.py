"""The terms of L_gen: gradients at the logits, who is in whose graph, and what the discriminator may see."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from softdimo.errors import DataError, PluginError
from softdimo.kinds import Batch, Cond, Context, Discriminator, ImageShape, TokenShape
from softdimo.math.divergence import Divergence
from softdimo.math.guidance import Guidance
from softdimo.math.init import Init
from softdimo.math.mdm import remask
from softdimo.math.rollout import Roll, rollout
from softdimo.math.soft import Relaxation
from softdimo_plugins.discriminators.pixels import Pixels
from softdimo_plugins.discriminators.teacher_features import TeacherFeatures
from softdimo_plugins.features.cnn import CNN
from softdimo_plugins.losses.dimo import DiMO, DiMOTerm
from softdimo_plugins.losses.gan import GAN, GANTerm
from softdimo_plugins.losses.reward import RewardLoss, RewardTerm, Weighted
from softdimo_plugins.rewards.class_log_prob import ClassLogProb, ClassLogProbReward
from softdimo_plugins.rewards.connected import Connected
from tests.engine import tiny
from tests.helpers import Painter, Pooled

B = 4


def context(shape: TokenShape = tiny.SHAPE, double: bool = True) -> Context:
    """A tiny teacher and tokenizer, in float64 so that comparisons can be sharp."""
    ctx = tiny.context(shape)
    tokenizer = Painter(shape).requires_grad_(False)
    whole = replace(ctx, make=lambda spec: spec.build(whole), tokenizer=tokenizer)
    if double:
        for net in (whole.teacher, tokenizer):
            assert net is not None
            net.double()
    return whole


def roll(ctx: Context, seed: int = 0, relaxation: Relaxation | None = None) -> Roll:
    """A roll of a student that is not the teacher."""
    student = stirred(ctx.copy_teacher(), 1)
    rng = torch.Generator().manual_seed(seed)
    out, _ = rollout(student, real(ctx).cond, Init(), rng, relaxation, ctx.tokenizer)
    return out


def real(ctx: Context) -> Batch:
    assert ctx.tokens is not None
    return tiny.batch(B, seed=3, shape=ctx.tokens)


def stirred(net: nn.Module, seed: int) -> nn.Module:
    """Other weights than the teacher's, so that no difference vanishes."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=rng))
    return net


def dimo(ctx: Context, **settings: object) -> DiMOTerm:
    term = DiMO(use="dimo", name="dimo", **settings).build(ctx)  # type: ignore[arg-type]
    assert term.critic is not None
    stirred(term.critic, 2)
    return term


def gan(ctx: Context, discriminator: Discriminator | None = None, **settings: object) -> GANTerm:
    spec = GAN(use="gan", name="gan", discriminator=TeacherFeatures(use="teacher_features", hidden=8), **settings)
    assert ctx.teacher is not None
    assert ctx.tokenizer is not None
    torch.manual_seed(5)
    made = discriminator or TeacherFeatures(hidden=8).build(ctx).to(ctx.teacher.table_rms().dtype)
    return GANTerm(spec, made, ctx.teacher, ctx.tokenizer)


def gradient(loss: Tensor, at: Roll) -> Tensor:
    return torch.autograd.grad(loss, at.logits)[0]


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


def directional(loss: Callable[[Tensor], Tensor], z: Tensor, along: Tensor, h: float = 1e-5) -> float:
    with torch.no_grad():
        return float(loss(z + h * along) - loss(z - h * along)) / (2 * h)


def agree(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Autograd against central differences in random directions; returns the gradient."""
    leaf = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(leaf), leaf)
    rng = torch.Generator().manual_seed(9)
    for _ in range(6):
        along = torch.randn(z.shape, generator=rng, dtype=z.dtype)
        assert directional(loss, z, along) == pytest.approx(float((g * along).sum()), rel=1e-6, abs=1e-9)
    assert float(g.abs().max()) > 1e-6
    return g


@pytest.mark.parametrize("kind", ["soft", "gumbel"])
@pytest.mark.parametrize("loss", ["non_saturating", "hinge"])
def test_gan_gradient_against_finite_differences(loss: str, kind: str) -> None:
    ctx = context()
    term, seen = gan(ctx, loss=loss), roll(ctx)

    def value(z: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(1)
        return term.generator(replace(seen, logits=z, rng=rng, relaxation=Relaxation(kind=kind, temperature=0.7)))[0]  # type: ignore[arg-type]

    g = agree(value, seen.logits.detach())
    # masked units are hidden from D, so nothing can be learned there
    mask = term._mask(B, replace(seen, rng=torch.Generator().manual_seed(1)))[1]
    if kind == "soft":
        assert 0 < int(mask.sum()) < mask.numel()
        assert torch.equal(g[mask], torch.zeros_like(g[mask]))


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


# What the discriminator sees


class Recorder(Discriminator):
    """Gives prepared scores (or a linear score) and keeps what it was shown."""

    def __init__(self, scores: Tensor | None = None, space: str = "embedding") -> None:
        super().__init__()
        self.scores, self.space = scores, space  # type: ignore[misc]
        self.weight = nn.Parameter(torch.ones(()))
        self.calls: list[tuple[Tensor, Tensor, Cond]] = []

    def forward(self, x: Tensor, ratio: Tensor, cond: Cond) -> Tensor:
        self.calls.append((x, ratio, cond))
        score = x.flatten(1).sum(1, keepdim=True) if self.scores is None else self.scores[: len(x)]
        return score * self.weight


def certain(seen: Roll, tokens: Tensor, V: int) -> Roll:
    """The same roll where the student is sure of `tokens`: its soft probabilities are one-hot."""
    logits = (one_hot(tokens, V) * 1e4).to(seen.logits.dtype).requires_grad_()
    out = replace(seen, logits=logits, tokens=tokens)
    assert torch.equal(out.probs, one_hot(tokens, V).to(out.probs.dtype))
    return out


@pytest.mark.parametrize("groups", [1, 2])
def test_one_hot_probabilities_score_as_the_hard_tokens_do(groups: int) -> None:
    """The discriminator must not be able to tell real from generated by how they are embedded."""
    ctx = context(TokenShape(2, 3, groups, 5), double=False)
    batch = real(ctx)
    assert batch.tokens is not None
    term = gan(ctx)
    scores: list[Tensor] = []
    assert term.critic is not None
    term.critic.register_forward_hook(lambda module, args, out: scores.append(out))
    seen = certain(roll(ctx), batch.tokens, 5)
    term.critic_loss(replace(seen.detach(), cond=batch.cond), batch)
    on_real, on_fake = scores[0].chunk(2)
    torch.testing.assert_close(on_real, on_fake, rtol=0, atol=1e-6)
    assert on_real.std().item() > 1e-3


def test_pixels_of_real_tokens_are_decoded_as_generated_ones_are() -> None:
    ctx = context(double=False)
    batch = real(ctx)
    assert batch.tokens is not None
    watch = Recorder(space="pixels")
    gan(ctx, watch).critic_loss(replace(certain(roll(ctx), batch.tokens, 5).detach(), cond=batch.cond), batch)
    x, ratio, _ = watch.calls[0]
    assert torch.equal(*x.chunk(2))
    assert ratio.tolist() == [0.0] * 2 * B


def test_real_and_generated_share_mask_ratio_and_mask() -> None:
    ctx = context()
    assert ctx.teacher is not None
    watch = Recorder()
    seen, batch = roll(ctx), real(ctx)
    gan(ctx, watch).critic_loss(seen.detach(), batch)
    x, ratio, cond = watch.calls[0]
    assert torch.equal(*ratio.chunk(2))
    assert len(set(ratio[:B].tolist())) == B
    assert cond.labels.tolist() == batch.cond.labels.tolist() + seen.cond.labels.tolist()
    # both groups masked: the position holds the sum of the mask rows, whatever was there
    hidden = ctx.teacher.embed(torch.full((1, 6, 2), 5))
    at_real, at_fake = ((part - hidden).abs().amax(-1) < 1e-9 for part in x.chunk(2))
    assert torch.equal(at_real, at_fake)
    assert 0 < int(at_real.sum()) < at_real.numel()


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1.0, 1.0)])
def test_ratio_zero_masks_nothing_and_one_masks_everything(low: float, high: float) -> None:
    ctx = context()
    assert ctx.teacher is not None
    watch = Recorder()
    seen, batch = roll(ctx), real(ctx)
    term = gan(ctx, watch, ratio=(low, high))
    term.critic_loss(seen.detach(), batch)
    term.generator(seen)
    assert batch.tokens is not None
    hidden = ctx.teacher.embed(torch.full((B, 6, 2), 5))
    whole_real, whole_fake = ctx.teacher.embed(batch.tokens), ctx.teacher.soften(seen.probs.detach())
    at_real, at_fake = watch.calls[0][0].chunk(2)
    torch.testing.assert_close(at_real, hidden if low else whole_real)
    torch.testing.assert_close(at_fake, hidden if low else whole_fake)
    torch.testing.assert_close(watch.calls[1][0].detach(), hidden if low else whole_fake)


def test_generator_and_critic_losses_by_hand() -> None:
    ctx = context()
    scores = torch.tensor([[2.0, 1.0], [0.5, -1.0], [0.0, 0.0], [3.0, 1.0]] + [[-2.0, 0.3]] * 4, dtype=torch.float64)
    sp = lambda x: math.log1p(math.exp(x))  # noqa: E731
    on_real, on_fake = scores[:4].flatten().tolist(), scores[4:].flatten().tolist()

    plain = gan(ctx, Recorder(scores))
    expected = sum(sp(-s) for s in on_real) / 8 + sum(sp(s) for s in on_fake) / 8
    loss, logs = plain.critic_loss(roll(ctx).detach(), real(ctx))
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert float(logs["real"]) == pytest.approx(sum(1 / (1 + math.exp(-s)) for s in on_real) / 8)
    assert float(logs["fake"]) == pytest.approx(sum(1 / (1 + math.exp(-s)) for s in on_fake) / 8)
    generator, _ = plain.generator(roll(ctx))
    assert generator.item() == pytest.approx(sum(sp(-s) for s in on_real) / 8, rel=1e-9)

    hinge = gan(ctx, Recorder(scores), loss="hinge")
    loss, _ = hinge.critic_loss(roll(ctx).detach(), real(ctx))
    assert loss.item() == pytest.approx((0 + 0 + 0.5 + 2 + 1 + 1 + 0 + 0) / 8 + (0 + 1.3) / 2, rel=1e-9)
    generator, _ = hinge.generator(roll(ctx))
    assert generator.item() == pytest.approx(-sum(on_real) / 8, rel=1e-9)


def test_approximate_r1_of_a_linear_discriminator() -> None:
    """D(x) = sum x: |D(x + n) - D(x)|^2 is the squared sum of the noise, n ~ N(0, (0.1 rms)^2), on real inputs only."""
    ctx = context()
    watch = Recorder()
    seen = roll(ctx).detach()
    without = gan(ctx, watch).critic_loss(replace(seen, rng=torch.Generator().manual_seed(4)), real(ctx))[0]
    loss, logs = gan(ctx, watch, r1=3.0).critic_loss(replace(seen, rng=torch.Generator().manual_seed(4)), real(ctx))
    noise = watch.calls[2][0] - watch.calls[1][0][:B]
    expected = float(noise.flatten(1).sum(1).square().mean())
    assert float(logs["r1"]) == pytest.approx(expected, rel=1e-6)
    assert (loss - without).item() == pytest.approx(3 * expected, rel=1e-6)
    rms = float(watch.calls[1][0][:B].square().mean().sqrt())
    assert float(noise.square().mean().sqrt()) == pytest.approx(0.1 * rms, rel=0.15)
    assert torch.equal(watch.calls[2][1], watch.calls[1][1][:B])


def test_a_discriminator_needs_real_tokens() -> None:
    ctx = context()
    with pytest.raises(DataError, match="needs real tokens"):
        gan(ctx).critic_loss(roll(ctx).detach(), Batch(real(ctx).cond))


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
