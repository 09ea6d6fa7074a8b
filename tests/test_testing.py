"""The contract checks accept what keeps the contract and name what breaks it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softdimo import testing
from softdimo.kinds import Discriminator
from softdimo.testing import TinyTeacher, TinyTokenizer, context


@pytest.fixture
def here():
    return context()


def refused(message: str):
    return pytest.raises(AssertionError, match=message)


class Reward:
    differentiable = True

    def __call__(self, img, cond):
        return img.square().mean((1, 2, 3)) + 0.1 * cond.labels


def variant(base, **members):
    return type("Variant", (base,), members)


def score(fn):
    return variant(Reward, __call__=lambda self, img, cond: fn(img, cond))()


def test_context_is_reproducible_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    a, b = context(1), context(1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.teacher.parameters(), b.teacher.parameters(), strict=True))
    assert not any(p.requires_grad for p in [*a.teacher.parameters(), *a.tokenizer.parameters()])


def test_rewards():
    testing.check_reward(Reward())
    testing.check_reward(
        variant(Reward, differentiable=False, __call__=lambda s, i, c: (i > 0.5).float().mean((1, 2, 3)))()
    )
    with refused("one number per image"):
        testing.check_reward(score(lambda i, c: i.mean()))
    with refused("floating point"):
        testing.check_reward(score(lambda i, c: c.labels))
    with refused("must be finite"):
        testing.check_reward(score(lambda i, c: i.mean((1, 2, 3)) / 0))
    with refused("rest of the batch"):
        testing.check_reward(score(lambda i, c: i.mean((1, 2, 3)) - i.mean()))
    with refused("permutation"):
        testing.check_reward(score(lambda i, c: i.mean((1, 2, 3)) * torch.arange(len(i))))
    with refused("asked twice"):
        testing.check_reward(score(lambda i, c: i.mean((1, 2, 3)) + torch.rand(len(i))))
    with refused("graph is cut"):
        testing.check_reward(score(lambda i, c: i.detach().mean((1, 2, 3))))
    with refused("must not be zero"):
        testing.check_reward(score(lambda i, c: (i * 0).mean((1, 2, 3))))
    with refused("gradient of the score must be finite"):
        testing.check_reward(score(lambda i, c: (i * 0).sqrt().mean((1, 2, 3))))
    with refused("in place"):
        testing.check_reward(score(lambda i, c: i.mul_(0.5).mean((1, 2, 3))))
    with refused("differentiable = True"):
        testing.check_reward(variant(Reward, differentiable="yes")())


def test_tokenizers():
    torch.manual_seed(0)
    testing.check_tokenizer(TinyTokenizer())
    with refused("must equal decode"):
        testing.check_tokenizer(variant(TinyTokenizer, decode=lambda s, t, c=None: 0.5 + 0 * s.decode_soft(
            nn.functional.one_hot(t, s.shape.V).float()))())  # fmt: skip
    with refused("never the mask id"):
        testing.check_tokenizer(variant(TinyTokenizer, encode=lambda s, i: TinyTokenizer.encode(s, i) + s.shape.V)())
    with refused("encode gives"):
        testing.check_tokenizer(variant(TinyTokenizer, encode=lambda s, i: TinyTokenizer.encode(s, i)[:, :, 0])())
    with refused("graph is cut"):
        testing.check_tokenizer(variant(TinyTokenizer, decode_soft=lambda s, p, c=None: TinyTokenizer.decode_soft(
            s, p.detach(), c).detach())())  # fmt: skip
    with refused(r"images are in \[0, 1\]"):
        testing.check_tokenizer(variant(TinyTokenizer, decode=lambda s, t, c=None: 3 * s.decode_soft(
            nn.functional.one_hot(t, s.shape.V).float()))())  # fmt: skip


def teacher(**members):
    torch.manual_seed(0)
    return variant(TinyTeacher, **members)()


def test_teachers():
    testing.check_teacher(teacher())
    with refused("soften at one-hot must equal embed"):
        testing.check_teacher(teacher(soften=lambda s, p, m=None: 2 * TinyTeacher.soften(s, p, m)))
    with refused("masked units"):
        testing.check_teacher(teacher(soften=lambda s, p, m=None: TinyTeacher.soften(s, p)))
    with refused("linear in the probabilities"):
        testing.check_teacher(teacher(soften=lambda s, p, m=None: TinyTeacher.soften(s, p.square(), m)))
    with refused("equal the full logits"):
        testing.check_teacher(teacher(forward=lambda s, e, c, at=None, features=(): TinyTeacher.forward(
            s, e, c, at, features)._replace(logits=TinyTeacher.forward(s, e, c, at).logits.flip(0)
                                            if at is not None else TinyTeacher.forward(s, e, c).logits)))  # fmt: skip
    with refused("rest of the batch"):
        testing.check_teacher(teacher(forward=lambda s, e, c, at=None, features=(): TinyTeacher.forward(
            s, e + e.mean(0), c, at, features)))  # fmt: skip
    with refused("frozen"):
        testing.check_teacher(teacher(frozen=lambda s: ("tables",)))
    with refused(r"layers\(\) names modules"):
        testing.check_teacher(teacher(layers=lambda s: (nn.Linear(1, 1),)))
    with refused("graph is cut"):
        testing.check_teacher(teacher(forward=lambda s, e, c, at=None, features=(): TinyTeacher.forward(
            s, e, c, at, features)._replace(logits=TinyTeacher.forward(s, e, c, at).logits.detach())))  # fmt: skip


class Heads(Discriminator):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(width, 2)

    def forward(self, x, ratio, cond):
        return self.head(x.tanh()).mean(1) * (1 + ratio[:, None])


def test_discriminators(here):
    testing.check_discriminator(Heads(), here)
    with refused("rest of the batch"):
        testing.check_discriminator(
            variant(Heads, forward=lambda s, x, r, c: Heads.forward(s, x - x.mean(0), r, c))(), here
        )
    with refused(r"\[B heads\]"):
        testing.check_discriminator(variant(Heads, forward=lambda s, x, r, c: Heads.forward(s, x, r, c)[:, 0])(), here)
    with refused("graph is cut"):
        testing.check_discriminator(
            variant(Heads, forward=lambda s, x, r, c: Heads.forward(s, x, r, c).detach())(), here
        )
    registered = Heads()
    registered.trunk = here.teacher
    with refused("must not be registered"):
        testing.check_discriminator(registered, here)


class Uniform:
    def passes(self):
        return 1.0

    def sample(self, net, cond, rng):
        s = net.shape
        return torch.randint(s.V, (len(cond), s.L, s.G), generator=rng)


def sampler(fn, **members):
    return variant(
        Uniform, sample=lambda self, net, cond, rng: fn(Uniform.sample(self, net, cond, rng), net, rng), **members
    )()


def test_samplers(here):
    testing.check_sampler(Uniform(), here)
    with refused("never emit the mask id"):
        testing.check_sampler(sampler(lambda t, net, rng: torch.where(t == 0, net.shape.V, t)), here)
    with refused("not the global one"):
        testing.check_sampler(sampler(lambda t, net, rng: torch.randint_like(t, 5)), here)
    with refused("same generator"):
        own = torch.Generator().manual_seed(0)
        testing.check_sampler(sampler(lambda t, net, rng: torch.randint(5, t.shape, generator=own)), here)
    with refused("another seed"):
        testing.check_sampler(sampler(lambda t, net, rng: t * 0), here)
    with refused(r"\[B L G\]"):
        testing.check_sampler(sampler(lambda t, net, rng: t[..., 0]), here)
    with refused("number of network passes"):
        testing.check_sampler(sampler(lambda t, net, rng: t, passes=lambda self: 0.0), here)


class Term:
    critic = None
    player = None

    def generator(self, roll):
        loss = roll.probs.square().sum(-1).mean()
        return loss, {"x": loss.detach()}


class CriticTerm(Term):
    def __init__(self, teacher) -> None:
        from softdimo.spec import Player

        self.teacher, self.critic, self.player = teacher, nn.Linear(8, 1), Player()

    def generator(self, roll):
        return self.critic(self.teacher.soften(roll.probs)).mean(), {}

    def critic_loss(self, roll, real):
        return self.critic(self.teacher.embed(real.tokens)).mean() - self.generator(roll)[0], {}


def test_losses(here):
    testing.check_loss(Term(), here)
    testing.check_loss(CriticTerm(here.teacher), here)
    with refused("one finite number"):
        testing.check_loss(variant(Term, generator=lambda s, r: (r.logits.mean((1, 2, 3)), {}))(), here)
    with refused("graph is cut"):
        testing.check_loss(variant(Term, generator=lambda s, r: (r.logits.detach().mean(), {}))(), here)
    with refused("logs are scalars"):
        testing.check_loss(variant(Term, generator=lambda s, r: (r.logits.mean(), {"x": r.logits}))(), here)

    def eager(self, roll):
        roll.probs.sum().backward(retain_graph=True)
        return roll.probs.square().sum(), {}

    with refused("must not call backward"):
        testing.check_loss(variant(Term, generator=eager)(), here)

    def thaws(self, roll):
        here.teacher.requires_grad_(True)
        return roll.probs.square().sum(), {}

    with refused("stay frozen"):
        testing.check_loss(variant(Term, generator=thaws)(), here)
    here.teacher.requires_grad_(False)
    owner = CriticTerm(here.teacher)
    owner.critic = nn.ModuleList([nn.Linear(8, 1), here.teacher])
    with refused("critic must not contain the teacher"):
        testing.check_loss(
            variant(CriticTerm, generator=Term.generator, __init__=lambda s: s.__dict__.update(owner.__dict__))(), here
        )
    idle = variant(CriticTerm, critic_loss=lambda s, r, real: (s.critic.weight.sum() * 0, {}))(here.teacher)
    with refused("must train the critic"):
        testing.check_loss(idle, here)
    nameless = CriticTerm(here.teacher)
    nameless.player = None
    with refused("says how it trains"):
        testing.check_loss(nameless, here)
