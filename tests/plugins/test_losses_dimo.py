"""Di[M]O's switches: fresh samples for psi, dropout where the public code has it, the mask as a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from softdimo.kinds import Cond, Context, Teacher, TokenShape
from softdimo.math.init import Init
from softdimo.math.mdm import remask
from softdimo.math.rollout import Roll, rollout
from softdimo_plugins.losses.dimo import DiMO, DiMOTerm
from softdimo_plugins.samplers.maskgit import MaskGIT
from softdimo_plugins.samplers.one_step import OneStep
from softdimo_plugins.samplers.theta_trapezoidal import ThetaTrapezoidal
from softdimo_plugins.teachers.maskgit import MaskGit
from softdimo_plugins.tokenizers.vqgan import VQGAN
from tests.plugins.terms import B, context, dimo, gan, gradient, real, roll, stirred

SHAPE = TokenShape(2, 3, 1, 5)
SMALL = VQGAN(width=32, latent=8, dim=6, codebook=5, multipliers=(1, 1), blocks=1)


def maskgit(**settings: Any) -> Context:
    """The context of a tiny MaskGIT."""
    ctx = context(SHAPE)
    torch.manual_seed(1)
    spec = MaskGit(**{"width": 16, "depth": 1, "heads": 2, "mlp": 16, "classes": 3} | settings)
    net = spec.build(replace(ctx, teacher=None)).requires_grad_(False).eval()
    return replace(ctx, teacher=stirred(net, 4).double())


def drawn(term: DiMOTerm, roll: Roll) -> tuple[Tensor, Tensor]:
    """The mask that the term will draw next, and x_t."""
    rng = torch.Generator()
    rng.set_state(roll.rng.get_state())
    return remask(roll.tokens, term.teacher, term.schedule, rng)


# Fresh samples


def test_psi_trains_on_what_the_student_draws_after_its_step() -> None:
    """New x_init, new labels, and the weights as they are when psi trains."""
    ctx = context()
    term = dimo(ctx, fresh_samples=True)
    student = stirred(ctx.copy_teacher(), 1)
    seen, _ = rollout(student, real(ctx).cond, Init(), torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    term.generator(seen)
    stirred(student, 7)  # the student's step
    rng = torch.Generator()
    rng.set_state(seen.rng.get_state())
    labels = torch.randint(3, (B,), generator=rng)
    expected, _ = rollout(student, Cond(labels), Init(), rng)  # type: ignore[arg-type]
    mask, x_t = drawn(term, expected)
    with torch.no_grad():
        p = term.auxiliary(term.auxiliary.embed(x_t), expected.cond).logits
    loss, _ = term.critic_loss(seen.detach(), real(ctx))
    torch.testing.assert_close(loss.detach(), cross_entropy(p[mask], expected.tokens[mask]))
    assert not torch.equal(expected.tokens, seen.tokens)
    assert not torch.equal(labels, seen.cond.labels)


def test_prompts_stay_those_of_the_batch() -> None:
    ctx = context()
    term, seen = dimo(ctx, fresh_samples=True), roll(ctx)
    asked: list[Cond] = []
    given = replace(seen.cond, prompts=("a", "b", "c", "d"))
    again = seen.again
    assert again is not None
    seen = replace(seen, cond=given, again=lambda cond: asked.append(cond) or again(cond))
    term.critic_loss(seen.detach(), real(ctx))
    assert asked[0] is given


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share_t": True, "fresh_samples": True}, "choose one"),
        ({"auxiliary": "none", "fresh_samples": True}, "fresh_samples is about training psi"),
    ],
)
def test_settings_that_exclude_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiMO(use="dimo", name="dimo", **settings)


# Dropout


def modes(net: nn.Module) -> list[bool]:
    """Grows by the mode of every pass."""
    found: list[bool] = []
    net.register_forward_hook(lambda module, args, out: found.append(module.training))
    return found


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("share_t", [False, True])
def test_dropout_acts_in_the_teacher_and_in_psi_where_g_is_computed(dropout: bool, share_t: bool) -> None:
    ctx = maskgit(dropout=0.5)
    term, seen, again = dimo(ctx, dropout=dropout, share_t=share_t), roll(ctx), roll(ctx)
    assert ctx.teacher is not None
    teacher, psi = modes(ctx.teacher), modes(term.auxiliary)
    first = gradient(term.generator(seen)[0], seen)
    assert (teacher, psi) == ([dropout], [dropout])
    assert not ctx.teacher.training  # other terms and samplers use it too
    assert torch.equal(gradient(term.generator(again)[0], again), first) != dropout
    term.critic_loss(again.detach(), real(ctx))
    assert psi == ([dropout] * 2 if share_t else [dropout] * 2 + [True])
    assert teacher == [dropout] * 2


# The mask as a class


def test_the_logits_of_the_codes_are_the_same() -> None:
    plain, more = maskgit().teacher, maskgit(mask_class=True).teacher
    assert plain is not None
    assert more is not None
    x, cond = torch.randint(6, (3, 6, 1)), Cond(torch.tensor([0, 1, -1]))
    a, b = (net(net.embed(x), cond).logits for net in (plain, more))
    assert (a.shape[-1], b.shape[-1]) == (5, 6)
    torch.testing.assert_close(a, b[..., :5])
    at = x == 5
    torch.testing.assert_close(more(more.embed(x), cond, at=at).logits, b[at])
    assert more(more.embed(x), cond, at=torch.zeros_like(at)).logits.shape == (0, 6)
    assert plain.state_dict().keys() == more.state_dict().keys()


def test_soft_embeddings_hold_the_masks_probability() -> None:
    net = maskgit(mask_class=True).teacher
    assert net is not None
    x = torch.randint(6, (3, 6, 1))
    hard = functional.one_hot(x, 6).double()
    mask = torch.rand(x.shape) < 0.5
    torch.testing.assert_close(net.soften(hard), net.embed(x))
    torch.testing.assert_close(net.soften(hard, mask), net.embed(x.masked_fill(mask, 5)))


def sure_of_masks(net: Teacher) -> Teacher:
    """The same network, whose logit for the mask is high."""
    with torch.no_grad():
        net.bias[:, 5] += 3  # type: ignore[operator, index]
    return net


def test_g_and_psis_cross_entropy_are_over_all_classes_and_the_student_can_draw_the_mask() -> None:
    ctx = maskgit(mask_class=True, dropout=0.0)
    assert ctx.teacher is not None
    sure_of_masks(ctx.teacher)
    term, seen = dimo(ctx, label_smoothing=0.1), roll(ctx)
    assert (seen.tokens == 5).any()
    assert (seen.tokens < 5).any()
    mask, x_t = drawn(term, seen)
    with torch.no_grad():
        e = ctx.teacher.embed(x_t)
        z_c, z_u = (ctx.teacher(e, c).logits for c in (seen.cond, ctx.teacher.null(seen.cond)))
        p = term.auxiliary(term.auxiliary.embed(x_t), seen.cond).logits
        q = z_u + 2 * (z_c - z_u)
    expected = torch.where(mask[..., None], (p.softmax(-1) - q.softmax(-1)) / B, 0)
    torch.testing.assert_close(gradient(term.generator(seen)[0], seen), expected)
    mask, x_t = drawn(term, seen)
    with torch.no_grad():
        p = term.auxiliary(term.auxiliary.embed(x_t), seen.cond).logits
    loss, _ = term.critic_loss(seen.detach(), real(ctx))
    torch.testing.assert_close(loss.detach(), cross_entropy(p[mask], seen.tokens[mask], label_smoothing=0.1))


def test_the_gan_sees_the_masks_probability() -> None:
    ctx = maskgit(mask_class=True)
    seen = roll(ctx)
    g = gradient(gan(ctx).generator(seen)[0], seen)
    assert g.shape[-1] == 6
    assert float(g[..., 5].abs().max()) > 0


def test_samplers_of_several_steps_never_draw_the_mask() -> None:
    net = maskgit(mask_class=True).teacher
    assert net is not None
    net.float()
    cond = Cond(torch.arange(12) % 3)
    sure_of_masks(net)
    one = OneStep(init=Init()).sample(net, cond, torch.Generator().manual_seed(0))
    assert (one == 5).any()
    for sampler in (MaskGIT(steps=3), ThetaTrapezoidal(steps=3)):
        assert int(sampler.sample(net, cond, torch.Generator().manual_seed(0)).max()) < 5


@pytest.mark.parametrize("decode", ["decode", "decode_soft"])
def test_the_tokenizer_reads_the_mask_as_the_last_code(decode: str) -> None:
    torch.manual_seed(0)
    net = SMALL.build(context(TokenShape(2, 3, 1, 5))).eval()
    x = torch.randint(6, (2, 6, 1))
    shown: Callable[[Tensor, int], Tensor] = lambda t, n: getattr(net, decode)(  # noqa: E731
        t if decode == "decode" else functional.one_hot(t, n).float()
    )
    assert (x == 5).any()
    torch.testing.assert_close(shown(x, 6), shown(x.clamp(max=4), 5))
