"""The student's one step: x_init -> z_theta -> x_theta, and everything that the terms of L_gen read from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softdimo.math.init import Init
from softdimo.math.noise import exponential
from softdimo.math.precision import wide
from softdimo.math.soft import Relaxation

if TYPE_CHECKING:
    from softdimo.kinds import Cond, Teacher, Tokenizer
    from softdimo.shapes import Embedding, Image, Logits, Mask, Probs, Tokens, UnitLogits


def categorical(logits: Tensor, rng: torch.Generator) -> Tensor:
    """Sample ids [...] from logits [... V] by the exponential race (arg max of p / Exp(1))."""
    p = torch.softmax(wide(logits), -1)
    return (p / exponential(p, rng).clamp_min_(1e-20)).argmax(-1)


@dataclass
class Roll:
    """One batch of student output. Terms reach the student's weights through `logits` only: all else derives from it,
    except `student_at` and `again`, which have no gradient.

    In the generator's turn `logits` is a leaf that requires grad: each term's gradient there is taken separately,
    weighted, summed, and back-propagated through the student once.
    """

    cond: Cond
    x_init: Tokens
    e_init: Embedding
    """Embedded x_init after the embedding noise: the student's input."""
    logits: Logits
    """z_theta(x_init), float32 (or float64)."""
    tokens: Tokens
    """x_theta ~ Cat(softmax z_theta), no gradient."""
    rng: torch.Generator
    relaxation: Relaxation
    student_at: Callable[[Tokens, Mask], UnitLogits]
    """The student's logits [N V] at the masked units of other tokens x_t, without gradient: one more pass."""
    tokenizer: Tokenizer | None = None
    again: Callable[[Cond], Roll] | None = None
    """What the student, as it is when this is called, draws for other conditions from new x_init: one more pass."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What a term keeps from its generator loss for its critic loss in the same iteration."""

    @cached_property
    def probs(self) -> Probs:
        """Relaxed tokens [B L G V], differentiable in `logits`: the p of the soft embedding E^T p."""
        return self.relaxation(self.logits, self.tokens, self.rng)

    @cached_property
    def images(self) -> Image:
        """Soft decode of `probs` through the tokenizer [B C H W], differentiable in `logits`."""
        if self.tokenizer is None:
            raise ValueError("this rollout has no tokenizer, so it has no images")
        return self.tokenizer.decode_soft(self.probs, self.cond)

    def detach(self) -> Roll:
        """The same roll without gradients; values already computed are kept."""
        out = replace(self, logits=self.logits.detach())
        for name in ("probs", "images"):
            if name in self.__dict__:
                out.__dict__[name] = self.__dict__[name].detach()
        return out


def start(net: Teacher, cond: Cond, init: Init, rng: torch.Generator) -> tuple[Tokens, Embedding]:
    """x_init [B L G] and its embedding with variance-preserving noise [B L D] (Di[M]O, section 3.3)."""
    x_init = init.tokens(len(cond), net.shape, rng, cond.labels.device)
    return x_init, init.perturb(net.embed(x_init), net.table_rms(), rng)


def rollout(
    net: Teacher,
    cond: Cond,
    init: Init,
    rng: torch.Generator,
    relaxation: Relaxation | None = None,
    tokenizer: Tokenizer | None = None,
) -> tuple[Roll, Logits]:
    """One student pass. Returns the roll (its logits a fresh leaf) and z_theta with its graph."""
    x_init, e_init = start(net, cond, init, rng)
    z = net(e_init, cond).logits
    leaf = wide(z.detach()).requires_grad_(z.requires_grad)
    with torch.no_grad():
        tokens = categorical(leaf, rng)

    @torch.no_grad()
    def student_at(x_t: Tokens, mask: Mask) -> UnitLogits:
        return wide(net(net.embed(x_t), cond, at=mask).logits)

    @torch.no_grad()
    def again(other: Cond) -> Roll:
        return rollout(net, other, init, rng, relaxation, tokenizer)[0]

    relaxed = relaxation or Relaxation()
    return Roll(cond, x_init, e_init, leaf, tokens, rng, relaxed, student_at, tokenizer, again), z


def generate(net: Teacher, cond: Cond, init: Init, rng: torch.Generator, temperature: float = 1.0) -> Tokens:
    """One-step sampling: hard tokens [B L G] at a sampling temperature."""
    _, e_init = start(net, cond, init, rng)
    return categorical(wide(net(e_init, cond).logits) / temperature, rng)
