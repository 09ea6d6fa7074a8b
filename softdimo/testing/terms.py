"""Contracts of what the student is trained on: rewards and losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from softdimo.kinds import Batch, Context, Logs, Reward, Term
from softdimo.math.rollout import Roll, rollout
from softdimo.testing.claims import (
    apart,
    gradient,
    independent,
    labels,
    left_alone,
    near,
    need,
    no_global_randomness,
    rng,
    tokens,
    unchanged,
    works,
)

PROMPTS = ("a bird", "a cat on a red sofa", "", "two dogs, at night")


def check_reward(
    reward: Reward, image: tuple[int, int] = (32, 32), classes: int = 3, prompts: tuple[str, ...] = PROMPTS
) -> None:
    """One finite score per image [B 3 H W], each sample by itself; finite gradients if `differentiable`, not all zero.

    Conditions have labels and these four prompts, each image its own. Tried on noise, on gray images (whose three
    channels are one in memory), and on images that generators do make: black, white, evenly gray, half black and half
    white.
    """
    img, cond = torch.rand(4, 3, *image, generator=rng()), replace(labels(4, classes), prompts=prompts)
    with unchanged("a reward", images=img, labels=cond.labels), no_global_randomness("a reward"):
        score = reward(img, cond)
    need(score.shape == (4,), f"a reward gives one number per image, [4] here, not {list(score.shape)}")
    need(score.is_floating_point(), f"a reward's scores must be floating point, not {score.dtype}")
    independent(reward, img, cond, "the score")
    gray = img[:, :1].expand(-1, 3, -1, -1)
    with torch.no_grad():
        scores = works(lambda: reward(gray, cond), "a reward on gray images (3 channels by `expand`)")
        near(scores, reward(gray.contiguous(), cond), "the score of gray images must not depend on their memory layout")
    says = isinstance(getattr(reward, "differentiable", None), bool)
    need(says, "a reward must say `differentiable = True` or `False`")
    if reward.differentiable:
        img.requires_grad_()
        apart(reward(img, cond), img, "the score")
    for name, plain in _plain_images(image).items():
        x = plain.expand(4, 3, -1, -1).clone().requires_grad_(reward.differentiable)
        score = reward(x, cond)
        need(torch.isfinite(score).all(), f"the score must be finite, for {name} images too")
        if reward.differentiable:
            gradient(score.sum(), x, f"the score of {name} images", zero=True)


def _plain_images(image: tuple[int, int]) -> dict[str, Tensor]:
    """[1 1 H W] each: where square roots, norms, divisions by a variance and logarithms have no derivative."""
    full = torch.ones(1, 1, *image)
    half = full * (torch.arange(image[1]) < image[1] // 2)
    return {"black": 0 * full, "white": full, "evenly gray": full / 2, "half black, half white": half}


def check_loss(term: Term, made_in: Context) -> None:
    """A finite scalar whose gradient reaches the student's logits and nothing else; a critic's loss its critic only.

    Tried on a student like the teacher and on one that is sure of every token (probabilities of exactly 0 and 1).
    """
    teacher, tokenizer, init = made_in.teacher, made_in.tokenizer, made_in.init
    assert teacher is not None, "give the context that it was built in"
    assert tokenizer is not None, "give the context that it was built in"
    assert init is not None, "give the context that it was built in"
    cond = labels(4, len(made_in.classes))
    student = made_in.copy_teacher().eval()
    own = [] if term.critic is None else list(term.critic.parameters())
    with torch.no_grad():
        for i, p in enumerate(own):
            p.add_(0.05 * torch.randn(p.shape, generator=rng(i)))

    def roll() -> Roll:
        made, _ = rollout(student, cond, init, rng(5), tokenizer=tokenizer)
        _ = made.images  # the terms before this one have seen them
        return made

    real = Batch(cond, tokens=tokens(4, teacher.shape))
    if own:
        frozen = {id(p) for net in (teacher, tokenizer) for p in net.parameters()}
        need(not {id(p) for p in own} & frozen, "the critic must not contain the teacher's parameters")
        need(term.player is not None, "a term with a critic says how it trains: `player`")
        with left_alone("critic_loss", teacher=teacher, tokenizer=tokenizer):
            seen = roll().detach()
            alone = "critic_loss without a turn of the generator before"
            works(lambda: _scalar(lambda: term.critic_loss(seen, real), seen, real, "critic_loss"), alone)
    with left_alone("a loss", teacher=teacher, tokenizer=tokenizer, student=student):
        sure = roll()
        sure = replace(sure, logits=(1e3 * sure.logits.detach()).requires_grad_(), tokens=sure.logits.argmax(-1))
        value = _scalar(lambda: term.generator(sure), sure, real, "generator, where the student is sure,")
        gradient(value, sure.logits, "the generator's loss where the student is sure", zero=True)
        one = roll()
        value = _scalar(lambda: term.generator(one), one, real, "generator")
        need(one.logits.grad is None and all(p.grad is None for p in own), "generator must not call backward")
        gradient(value, one.logits, "the generator's loss")
        torch.autograd.backward(value, retain_graph=True)
    if term.critic is None:
        return
    term.critic.zero_grad()
    assert one.logits.grad is not None
    with (
        left_alone("critic_loss", teacher=teacher, tokenizer=tokenizer, student=student),
        unchanged("critic_loss", gradient=one.logits.grad),
    ):
        seen = one.detach()
        loss = _scalar(lambda: term.critic_loss(seen, real), seen, real, "critic_loss")
        need(loss.requires_grad, "critic_loss must train the critic, but its graph is cut")
        torch.autograd.backward(loss, retain_graph=True)
        need(all(p.grad is None or p.grad.isfinite().all() for p in own), "the critic's gradients must be finite")
        need(any(p.grad is not None and p.grad.abs().max() > 0 for p in own), "critic_loss must train the critic")


def _scalar(fn: Callable[[], tuple[Tensor, Logs]], roll: Roll, real: Batch, what: str) -> Tensor:
    """A finite loss with scalars for the log; the roll and the real batch stay as they are."""
    logits = roll.logits
    seen = {"logits": logits, "tokens": roll.tokens, "x_init": roll.x_init, "e_init": roll.e_init}
    seen |= {"probs": roll.probs, "images": roll.images}
    with unchanged(what, **seen, labels=roll.cond.labels, real=real.tokens), no_global_randomness(what):
        value, logs = fn()
    need(roll.logits is logits, f"{what} must not put other logits into the roll: the other terms share it")
    number = isinstance(value, Tensor) and value.ndim == 0
    need(number and value.isfinite(), f"{what} gives one finite number (before the term's weight)")
    need(all(torch.as_tensor(v).numel() == 1 for v in logs.values()), "logs are scalars")
    return value
