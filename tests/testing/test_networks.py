"""The contract checks of networks accept what keeps the contract and name what breaks it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from softdimo import testing
from softdimo.kinds import Discriminator, Features
from softdimo.testing import TinyTeacher, TinyTokenizer, context
from softdimo_plugins.features.cnn import CNN
from tests.helpers import refused, variant


def test_context_is_reproducible_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    a, b, c = context(1), context(1), context(2)
    nets = [here.make(CNN(use="cnn", width=4)) for here in (a, b, c)]
    assert a.make(CNN(use="cnn", width=4)) is nets[0]
    assert torch.equal(nets[0].head.weight, nets[1].head.weight)
    assert not torch.equal(nets[0].head.weight, nets[2].head.weight)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.teacher.parameters(), b.teacher.parameters(), strict=True))
    assert not any(p.requires_grad for net in (a.teacher, a.tokenizer, nets[0]) for p in net.parameters())


def teacher(**members):
    torch.manual_seed(0)
    return variant(TinyTeacher, **members)()


def through(change):
    """A forward that changes what TinyTeacher's gives: change(output, embeddings, at)."""
    return lambda s, e, c, at=None, features=(): change(TinyTeacher.forward(s, e, c, at, features), e, at)


def test_teachers():
    testing.check_teacher(teacher())
    with refused("equal the full logits"):
        testing.check_teacher(
            teacher(forward=through(lambda out, e, at: out if at is None else out._replace(logits=out.logits.flip(0))))
        )
    with refused("rest of the batch"):
        testing.check_teacher(teacher(forward=lambda s, e, c, at=None, features=(): TinyTeacher.forward(
            s, e + e.mean(0), c, at, features)))  # fmt: skip
    with refused("the same alone, in company and without the head"):
        testing.check_teacher(
            teacher(
                forward=through(
                    lambda out, e, at: out._replace(features=tuple(f * (1 + (at is None)) for f in out.features))
                )
            )
        )
    with refused("frozen"):
        testing.check_teacher(teacher(frozen=lambda s: ("tables",)))
    with refused(r"layers\(\) names modules"):
        testing.check_teacher(teacher(layers=lambda s: (nn.Linear(1, 1),)))
    with refused("graph is cut"):
        testing.check_teacher(teacher(forward=through(lambda out, e, at: out._replace(logits=out.logits.detach()))))
    with refused("forward must not draw from a global"):
        testing.check_teacher(
            teacher(forward=through(lambda out, e, at: out._replace(logits=out.logits + 1e-6 * torch.rand(())))
        ))  # fmt: skip


def by_position(self, probs, mask=None):
    """Masks whole positions only: a position with one masked group counts as visible."""
    return TinyTeacher.soften(self, probs, None if mask is None else mask.all(-1, keepdim=True).expand_as(mask))


def at_last(self, probs, mask=None):
    """Forgets the mask where nothing else is left."""
    return TinyTeacher.soften(self, probs, None if mask is None or mask.all() else mask)


@pytest.mark.parametrize(
    ("soften", "message"),
    [
        (lambda s, p, m=None: 2 * TinyTeacher.soften(s, p, m), "soften at one-hot must equal embed"),
        (lambda s, p, m=None: TinyTeacher.soften(s, p), "with some masked units must equal embed"),
        (by_position, "with some masked units must equal embed"),
        (at_last, "with all masked units must equal embed"),
        (lambda s, p, m=None: TinyTeacher.soften(s, p.square(), m), "linear in the probabilities"),
        (lambda s, p, m=None: s.embed(p.argmax(-1).where(~m, s.shape.V) if m is not None else p.argmax(-1)), "linear"),
        (lambda s, p, m=None: TinyTeacher.soften(s, p.detach(), m), "soften must be differentiable, but its graph"),
        (lambda s, p, m=None: TinyTeacher.soften(s, p, m) + (m is None) * 1e-2, "soften"),
    ],
)
def test_teachers_whose_soft_embedding_is_another(soften, message):
    with refused(message):
        testing.check_teacher(teacher(soften=soften).requires_grad_(False))


class Reading(TinyTeacher):
    """Adds what it makes of an encoding of the prompt."""

    def forward(self, e, cond, at=None, features=()):
        return super().forward(e + self.read(cond.tensors["states"])[:, None], cond, at, features)

    def read(self, states):
        return states.mean(1)


def test_networks_that_read_encodings():
    """They get conditions with encodings, of their own prompts and of the unconditional one."""
    cond = testing.encoded(5, states=(7, 8))
    assert cond.labels.tolist() == [-1] * 5
    assert {name: tuple(t.shape) for name, t in cond.tensors.items()} == {"states": (5, 7, 8), "null.states": (5, 7, 8)}
    assert torch.equal(cond.tensors["null.states"][0], cond.tensors["null.states"][4])
    assert not torch.equal(cond.tensors["states"][0], cond.tensors["states"][1])
    torch.manual_seed(0)
    testing.check_teacher(Reading(), cond=cond)
    with pytest.raises(KeyError, match="states"):
        testing.check_teacher(Reading())
    with refused("rest of the batch|permutation"):
        testing.check_teacher(
            variant(Reading, read=lambda s, t: t.mean((0, 1)).expand(len(t), -1) + t[:1, 0])(), cond=cond
        )
    with refused("the decoded image must"):
        mixing = variant(TinyTokenizer, decode_soft=lambda s, p, c=None: (
            TinyTokenizer.decode_soft(s, p) * c.tensors["states"].mean().sigmoid()))  # fmt: skip
        testing.check_tokenizer(mixing(), cond=testing.encoded(3, states=(2, 2)))


def soft(change):
    return lambda s, p, c=None: change(TinyTokenizer.decode_soft(s, p, c), p)


def trained(change):
    """A tokenizer whose loss is `change` of its reconstruction error."""

    def loss(self, img, rng, progress):
        error = (self.decode_soft(functional.one_hot(self.encode(img), self.shape.V).float()) - img).square().mean()
        return change(error, rng), {"error": error.detach()}

    return variant(TinyTokenizer, loss=loss)()


def test_tokenizers():
    torch.manual_seed(0)
    testing.check_tokenizer(TinyTokenizer())
    testing.check_tokenizer(trained(lambda error, rng: error * torch.rand((), generator=rng)))
    with refused("must equal decode"):
        testing.check_tokenizer(
            variant(TinyTokenizer, decode=lambda s, t, c=None: 0.5 + 0 * TinyTokenizer.decode(s, t, c))()
        )
    with refused("never the mask id"):
        testing.check_tokenizer(variant(TinyTokenizer, encode=lambda s, i: TinyTokenizer.encode(s, i) + s.shape.V)())
    with refused("encode gives"):
        testing.check_tokenizer(variant(TinyTokenizer, encode=lambda s, i: TinyTokenizer.encode(s, i)[:, :, 0])())
    with refused("encode must not depend on the rest"):
        testing.check_tokenizer(variant(TinyTokenizer, encode=lambda s, i: TinyTokenizer.encode(s, i - i.mean(0)))())
    with refused("graph is cut"):
        testing.check_tokenizer(variant(TinyTokenizer, decode_soft=soft(lambda x, p: x.detach()))())
    with refused(r"images are in \[0, 1\]"):
        testing.check_tokenizer(variant(TinyTokenizer, decode=lambda s, t, c=None: 3 * TinyTokenizer.decode(s, t, c))())
    with refused("one sample must not depend on the other"):
        mixed = soft(lambda x, p: x + 0 * p.amax((0, 2, 3)).sum() + 1e-5 * (p[0] - p[0].detach()).sum())
        testing.check_tokenizer(variant(TinyTokenizer, decode_soft=mixed)())
    with refused("decode_soft at one-hot must be finite"):
        sharp = soft(lambda x, p: x + 0 * (p * (1 - p)).sqrt().sum())
        testing.check_tokenizer(variant(TinyTokenizer, decode_soft=sharp)())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda error, rng: error / 0, "training loss is one finite number"),
        (lambda error, rng: error.detach(), "training loss must be differentiable"),
        (lambda error, rng: error * 0, "must train the network"),
        (lambda error, rng: (error * 0).sqrt(), "gradients of the training must be finite"),
        (lambda error, rng: error * torch.rand(()), "training loss must not draw from a global"),
    ],
)
def test_training_losses(change, message):
    torch.manual_seed(0)
    with refused(message):
        testing.check_tokenizer(trained(change))


class Judge(Features):
    """Normalized convolution, pooled; gray is repeated."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Tanh())
        self.head, self.width = nn.Linear(8, 3), 8

    def forward(self, img):
        features = self.body(img.expand(-1, 3, -1, -1)).mean((2, 3))
        return features, self.head(features)


def judge(change):
    return variant(Judge, forward=lambda self, img: change(self, *Judge.forward(self, img)))()


def test_features():
    testing.check_features(Judge())
    with refused("F = width = 8, not"):
        testing.check_features(judge(lambda s, f, z: (f[:, :4], z)))
    with refused("one logit for each of the 3 classes, not 2"):
        testing.check_features(judge(lambda s, f, z: (f, z[:, :2])))
    with refused("the features must not depend on the rest of the batch"):
        testing.check_features(judge(lambda s, f, z: (f - f.mean(0), z)))
    with refused("the class logits must not depend on the rest of the batch"):
        testing.check_features(judge(lambda s, f, z: (f, z.softmax(0))))
    with refused("features must be differentiable, but its graph is cut"):
        testing.check_features(variant(Judge, forward=torch.no_grad()(Judge.forward))())

    def running(self, f, z):
        self.body[1].running_mean.add_(0.1)
        return f, z

    with refused("forward must not change the weights or buffers of the network"):
        testing.check_features(judge(running))
    with refused("forward must not draw from a global"):
        testing.check_features(judge(lambda s, f, z: (f + torch.rand(()), z)))
    with refused("must train the network"):
        testing.check_features(variant(Judge, loss=lambda s, img, cond, rng: (0 * s(img)[1].mean(), {}))())


class Heads(Discriminator):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(width, 2)

    def forward(self, x, ratio, cond):
        return self.head(x.tanh()).mean(1) * (1 + ratio[:, None])


def heads(change, **members):
    """Heads whose forward is changed: change(self, x, ratio, cond)."""
    return variant(Heads, forward=lambda s, x, r, c: change(s, x, r, c), **members)()


def test_discriminators():
    here = context()
    testing.check_discriminator(Heads(), here)
    with refused("rest of the batch"):
        testing.check_discriminator(heads(lambda s, x, r, c: Heads.forward(s, x - x.mean(0), r, c)), here)
    with refused(r"\[B heads\]"):
        testing.check_discriminator(heads(lambda s, x, r, c: Heads.forward(s, x, r, c)[:, 0]), here)
    with refused("graph is cut"):
        testing.check_discriminator(heads(lambda s, x, r, c: Heads.forward(s, x, r, c).detach()), here)
    with refused("`embedding` or `pixels`"):
        testing.check_discriminator(heads(Heads.forward, space="image"), here)
    with refused("must get gradients"):
        testing.check_discriminator(heads(lambda s, x, r, c: x.mean((1, 2))[:, None]), here)
    with refused("change its ratios in place"):
        testing.check_discriminator(heads(lambda s, x, r, c: Heads.forward(s, x, r.mul_(2), c)), here)
    registered = Heads()
    registered.trunk = here.teacher
    with refused("must not be registered"):
        testing.check_discriminator(registered, here)

    def thaws(self, x, ratio, cond):
        here.teacher.requires_grad_(True)
        return Heads.forward(self, x, ratio, cond)

    with refused("must not reach the weights of the teacher"):
        testing.check_discriminator(heads(thaws), here)
