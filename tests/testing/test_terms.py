"""The contract checks of rewards and losses accept what keeps the contract and name what breaks it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from softdimo import testing
from softdimo.spec import Player
from softdimo.testing import context
from tests.helpers import refused, variant


@pytest.fixture
def here():
    return context()


class Reward:
    differentiable = True

    def __call__(self, img, cond):
        return img.square().mean((1, 2, 3)) + 0.1 * cond.labels


def score(fn, differentiable=True):
    return variant(Reward, __call__=lambda self, img, cond: fn(img, cond), differentiable=differentiable)()


def mean(img):
    return img.mean((1, 2, 3))


class Judge(nn.Module):
    """A classifier as a reward, as `build` leaves it: with dropout or batch norm in training mode unless told."""

    differentiable = True

    def __init__(self, *layers):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), *layers)
        self.head = nn.Linear(8, 3)

    def forward(self, img, cond):
        return self.head(self.body(img).mean((2, 3))).log_softmax(-1).gather(1, cond.labels[:, None])[:, 0]


def test_rewards():
    testing.check_reward(Reward())
    testing.check_reward(score(lambda i, c: (i > 0.5).float().mean((1, 2, 3)), differentiable=False))
    testing.check_reward(Judge(nn.BatchNorm2d(8), nn.Dropout()).eval())
    testing.check_reward(score(lambda i, c: mean((i - i.flip(-1)).square()).add(1e-6).sqrt()))
    with refused("one number per image"):
        testing.check_reward(score(lambda i, c: i.mean()))
    with refused("floating point"):
        testing.check_reward(score(lambda i, c: c.labels))
    with refused("must be finite"):
        testing.check_reward(score(lambda i, c: mean(i) / 0))
    with refused("in place"):
        testing.check_reward(score(lambda i, c: mean(i.mul_(0.5))))
    with refused("labels in place"):
        testing.check_reward(score(lambda i, c: mean(i) + c.labels.clamp_(max=1)))
    with refused("differentiable = True"):
        testing.check_reward(variant(Reward, differentiable="yes")())
    with refused("differentiable = True"):
        testing.check_reward(lambda img, cond: mean(img))
    with refused(r"gray images .* must work, but raises RuntimeError: view"):
        testing.check_reward(score(lambda i, c: i.view(len(i), -1).mean(1)))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda i, c: mean(i).mean().expand(len(i)), "rest of the batch"),
        (lambda i, c: mean(i) - i.mean(), "rest of the batch"),
        (lambda i, c: mean(i).softmax(0), "rest of the batch"),
        (lambda i, c: mean(i) * torch.arange(len(i)), "permutation"),
        (lambda i, c: mean(i).cumsum(0), "permutation"),
        (Judge(nn.BatchNorm2d(8)), r"rest of the batch \(is a network in training mode"),
        (Judge(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8)), "of a batch of one must work, but raises ValueError"),
    ],
)
def test_rewards_that_mix_a_batch(fn, message):
    with refused(message):
        testing.check_reward(score(fn))


def test_rewards_that_draw():
    own = torch.Generator().manual_seed(0)
    with refused("asked twice"):
        testing.check_reward(score(lambda i, c: mean(i) + torch.rand(len(i), generator=own)))
    with refused("global random generator"):
        testing.check_reward(score(Judge(nn.Dropout())))
    with refused("global random generator"):
        testing.check_reward(score(lambda i, c: mean(i) + np.random.rand()))

    def seeds(img, cond):
        torch.manual_seed(0)
        return mean(img) + torch.rand(len(img)).mean()

    torch.rand(1)
    with refused("nor seed one"):
        testing.check_reward(score(seeds))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda i, c: mean(i.detach()), "graph is cut"),
        (lambda i, c: mean(i.detach()) * torch.ones(len(i), requires_grad=True), "does not depend on it"),
        (lambda i, c: mean(i * 0), "must not be zero"),
        (lambda i, c: mean(i.round()), "must not be zero"),
        (lambda i, c: mean((i * 0).sqrt()), "gradient of the score must be finite"),
        (lambda i, c: mean(i.square()).sqrt(), "gradient of the score of black images must be finite"),
        (lambda i, c: i.var((1, 2, 3)).sqrt(), "gradient of the score of black images must be finite"),
        (lambda i, c: mean((i - 1).square()).sqrt(), "gradient of the score of white images must be finite"),
        (lambda i, c: mean((i - i.flip(-2)).square()).sqrt(), "gradient of the score of black images must be finite"),
        (lambda i, c: mean((i - 0.5).square()).sqrt(), "gradient of the score of evenly gray images must be finite"),
        (lambda i, c: mean(i) / i.std((1, 2, 3)), "must be finite, for black images too"),
        (lambda i, c: mean(i * (1 - i)).sqrt(), "gradient of the score of black images"),
    ],
)
def test_rewards_without_a_usable_gradient(fn, message):
    with refused(message):
        testing.check_reward(score(fn))


class Term:
    critic = None
    player = None

    def generator(self, roll):
        loss = roll.probs.square().sum(-1).mean()
        return loss, {"x": loss.detach()}


class CriticTerm(Term):
    def __init__(self, teacher) -> None:
        self.teacher, self.critic, self.player = teacher, nn.Linear(8, 1), Player()

    def generator(self, roll):
        return self.critic(self.teacher.soften(roll.probs)).mean(), {}

    def critic_loss(self, roll, real):
        return self.critic(self.teacher.embed(real.tokens)).mean() - self.generator(roll)[0], {}


def term(generator, base=Term):
    return variant(base, generator=generator)


def test_losses(here):
    testing.check_loss(Term(), here)
    testing.check_loss(CriticTerm(here.teacher), here)
    with refused("one finite number"):
        testing.check_loss(term(lambda s, r: (r.logits.mean((1, 2, 3)), {}))(), here)
    with refused("one finite number"):
        testing.check_loss(term(lambda s, r: (0.0, {}))(), here)
    with refused("graph is cut"):
        testing.check_loss(term(lambda s, r: (r.logits.detach().mean(), {}))(), here)
    with refused("graph is cut"):
        testing.check_loss(term(lambda s, r: (r.tokens.float().mean(), {}))(), here)
    with refused("logs are scalars"):
        testing.check_loss(term(lambda s, r: (r.logits.mean(), {"x": r.logits}))(), here)
    with refused("must not be zero"):
        testing.check_loss(term(lambda s, r: (r.probs.sum(-1).round().mean(), {}))(), here)
    with refused("where the student is sure,? gives one finite number"):
        testing.check_loss(term(lambda s, r: ((r.probs * r.probs.log()).sum(-1).mean(), {}))(), here)
    with refused("where the student is sure must be finite"):
        testing.check_loss(term(lambda s, r: (r.probs.square().sum(-1).sub(1).abs().sqrt().mean(), {}))(), here)


def test_losses_that_send_gradients_where_none_belong(here):
    def eager(self, roll):
        roll.probs.sum().backward(retain_graph=True)
        return roll.probs.square().sum(), {}

    with refused("must not call backward"):
        testing.check_loss(term(eager)(), here)

    def thaws(self, roll):
        self.teacher.requires_grad_(True)
        return self.teacher(self.teacher.soften(roll.probs), roll.cond).logits.square().mean(), {}

    teacher = context().teacher
    bound = term(thaws)()
    bound.teacher = here.teacher
    with refused("must not reach the weights of the teacher"):
        testing.check_loss(bound, here)

    def thaws_for_a_moment(self, roll):
        self.teacher.requires_grad_(True)
        inner = self.teacher(self.teacher.soften(roll.probs.detach()), roll.cond).logits.square().mean()
        inner.backward()
        self.teacher.requires_grad_(False)
        return roll.probs.square().mean(), {}

    here = context()
    bound = term(thaws_for_a_moment)()
    bound.teacher = here.teacher
    with refused("must not reach the weights of the teacher"):
        testing.check_loss(bound, here)

    def decoder_too(self, roll):
        roll.tokenizer.requires_grad_(True)
        return roll.images.mean() + roll.tokenizer.decode_soft(roll.probs).mean(), {}

    here = context()
    with refused("must not reach the weights of the tokenizer"):
        testing.check_loss(term(decoder_too)(), here)
    here = context()
    testing.check_loss(term(lambda s, r: (teacher(teacher.soften(r.probs), r.cond).logits.square().mean(), {}))(), here)


def test_losses_that_change_the_teacher(here):
    def train(self, roll):
        here.teacher.train()
        return roll.probs.square().mean(), {}

    with refused("leave the teacher in its mode"):
        testing.check_loss(term(train)(), here)

    def drift(self, roll):
        with torch.no_grad():
            here.teacher.table.mul_(0.999)
        return roll.probs.square().mean(), {}

    here = context()
    with refused("change the weights or buffers of the teacher"):
        testing.check_loss(term(drift)(), here)


def shifted(self, roll):
    z = roll.logits.detach()
    z -= z.max(-1, keepdim=True).values  # the same memory
    return roll.logits.log_softmax(-1).square().mean(), {}


def remasked(self, roll):
    roll.tokens[:, ::2] = 5
    return roll.probs.square().mean(), {}


def cooled(self, roll):
    roll.logits = roll.logits / 2
    return roll.logits.square().mean(), {}


def clamped(self, roll):
    roll.images.data.clamp_(0.1, 0.9)
    return roll.images.mean(), {}


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (shifted, "must not change its logits in place"),
        (remasked, "must not change its tokens in place"),
        (clamped, "must not change its images in place"),
        (cooled, "must not put other logits into the roll"),
        (lambda s, r: ((r.probs * torch.rand_like(r.probs)).mean(), {}), "not draw from a global"),
        (lambda s, r: ((r.probs[:, np.random.permutation(6)[:3]]).square().mean(), {}), "not draw from a global"),
    ],
)
def test_losses_that_disturb_the_terms_after_them(here, generator, message):
    with refused(message):
        testing.check_loss(term(generator)(), here)


def critic_term(here, **members):
    return variant(CriticTerm, **members)(here.teacher)


def test_critics(here):
    owner = CriticTerm(here.teacher)
    owner.critic = nn.ModuleList([nn.Linear(8, 1), here.teacher])
    with refused("critic must not contain the teacher"):
        testing.check_loss(owner, here)
    with refused("must train the critic"):
        testing.check_loss(critic_term(here, critic_loss=lambda s, r, real: (s.critic.weight.sum() * 0, {})), here)
    with refused("must train the critic, but its graph is cut"):
        testing.check_loss(critic_term(here, critic_loss=lambda s, r, real: (s.generator(r)[0].detach(), {})), here)
    nameless = CriticTerm(here.teacher)
    nameless.player = None
    with refused("says how it trains"):
        testing.check_loss(nameless, here)
    nan = critic_term(here, critic_loss=lambda s, r, real: ((s.critic.weight * 0).sqrt().sum(), {}))
    with refused("critic's gradients must be finite"):
        testing.check_loss(nan, here)


def keeps(self, roll):
    self.fake = self.teacher.soften(roll.probs)
    return self.critic(self.fake).mean(), {}


def test_critic_losses_that_leak_or_lean(here):
    def leaks(self, roll, real):
        fake = getattr(self, "fake", self.teacher.soften(roll.probs))  # that of the generator's turn, with its graph
        return self.critic(self.teacher.embed(real.tokens)).mean() - self.critic(fake).mean(), {}

    with refused("critic_loss must not change its gradient"):
        testing.check_loss(critic_term(here, generator=keeps, critic_loss=leaks), here)

    def leans(self, roll, real):
        return self.critic(self.fake.detach()).mean(), {}

    with refused("without a turn of the generator before must work, but raises AttributeError"):
        testing.check_loss(critic_term(here, generator=keeps, critic_loss=leans), here)
    with refused("without a turn of the generator before must work"):
        testing.check_loss(critic_term(here, critic_loss=lambda s, r, real: (s.critic(real.images).mean(), {})), here)

    def masks(self, roll, real):
        real.tokens[:, ::2] = 5
        return CriticTerm.critic_loss(self, roll, real)

    with refused("must not change its real in place"):
        testing.check_loss(critic_term(here, critic_loss=masks), here)

    def draws(self, roll, real):
        return CriticTerm.critic_loss(self, roll, real)[0] * torch.rand(()), {}

    with refused("critic_loss must not draw from a global"):
        testing.check_loss(critic_term(here, critic_loss=draws), here)

    def thaws(self, roll, real):
        self.teacher.requires_grad_(True)
        return CriticTerm.critic_loss(self, roll, real)

    with refused("critic_loss must not reach the weights of the teacher"):
        testing.check_loss(critic_term(here, critic_loss=thaws), here)
