"""Tiny terms of L_gen, and rolls of a student for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from softdimo.kinds import Batch, Context, Discriminator, TokenShape
from softdimo.math.init import Init
from softdimo.math.rollout import Roll, rollout
from softdimo.math.soft import Relaxation
from softdimo_plugins.discriminators.teacher_features import TeacherFeatures
from softdimo_plugins.losses.dimo import DiMO, DiMOTerm
from softdimo_plugins.losses.gan import GAN, GANTerm
from tests.engine import tiny
from tests.helpers import Painter

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
