"""Contract checks for components of your own, and a tiny teacher and tokenizer to try them on.

    from softdimo.testing import check_reward, context

    def test_contract():
        check_reward(MyReward().build(context()))

Each check raises AssertionError, saying what the contract asks. They run in seconds on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softdimo.kinds import (
    Batch,
    Cond,
    Context,
    Discriminator,
    Features,
    ImageShape,
    Output,
    Reward,
    Sampler,
    Teacher,
    Term,
    Tokenizer,
    TokenShape,
)
from softdimo.math.init import Init
from softdimo.math.rollout import rollout

IMAGE, TOKENS = ImageShape(1, 8, 12), TokenShape(2, 3, 2, 5)


class TinyTeacher(Teacher):
    """Two blocks of token mixing on L = 6 positions, G = 2 groups, V = 5 classes, width 8: for tests only."""

    def __init__(self, shape: TokenShape = TOKENS, classes: int = 3) -> None:
        super().__init__()
        self.shape, self.width, self.depth = shape, 8, 2
        self.table = nn.Parameter(torch.randn(shape.G, shape.V + 1, self.width))
        self.position = nn.Parameter(torch.randn(shape.L, self.width))
        self.label = nn.Embedding(classes + 1, self.width)
        self.mix = nn.ModuleList(nn.Linear(shape.L, shape.L) for _ in range(self.depth))
        self.head = nn.Linear(self.width, shape.G * shape.V)

    def embed(self, tokens: Tensor) -> Tensor:
        """Sum of the groups' table rows."""
        return self.table[torch.arange(self.shape.G), tokens].sum(2)

    def soften(self, probs: Tensor, mask: Tensor | None = None) -> Tensor:
        """E^T p per group, the mask row where masked."""
        rows = torch.einsum("blgv,gvd->blgd", probs, self.table[:, :-1])
        if mask is not None:
            rows = torch.where(mask[..., None], self.table[:, -1], rows)
        return rows.sum(2)

    def forward(self, e: Tensor, cond: Cond, at: Tensor | None = None, features: Sequence[int] = ()) -> Output:
        """Mix positions, add the condition, project."""
        classes = self.label.num_embeddings - 1
        x = e + self.position + self.label(torch.where(cond.labels < 0, classes, cond.labels))[:, None]
        kept = []
        for mix in self.mix:
            x = x + torch.tanh(mix(x.transpose(1, 2))).transpose(1, 2)
            kept.append(x)
        logits = self.head(x).unflatten(-1, (self.shape.G, self.shape.V))
        return Output(logits if at is None else logits[at], tuple(kept[i] for i in features))

    def table_rms(self) -> Tensor:
        """RMS of the table."""
        return self.table.detach().square().mean().sqrt()

    def layers(self) -> Sequence[nn.Module]:
        """The mixing layers."""
        return tuple(self.mix)


class TinyTokenizer(Tokenizer):
    """4 x 4 patches, a linear code per group: for tests only."""

    def __init__(self, image: ImageShape = IMAGE, groups: int = TOKENS.G, classes: int = TOKENS.V) -> None:
        super().__init__()
        self.image, self.shape = image, TokenShape(image.H // 4, image.W // 4, groups, classes)
        self.code = nn.Parameter(torch.randn(groups, classes, 16 * image.C))

    def encode(self, img: Tensor) -> Tensor:
        """The code with the largest inner product, per group."""
        patches = functional.unfold(img - 0.5, 4, stride=4).transpose(1, 2)
        return torch.einsum("blp,gvp->blgv", patches, self.code).argmax(-1)

    def decode_soft(self, probs: Tensor, cond: Cond | None = None) -> Tensor:
        """Sigmoid of the expected codes' sum."""
        patches = torch.einsum("blgv,gvp->bpl", probs, self.code).sigmoid()
        return functional.fold(patches, (self.image.H, self.image.W), 4, stride=4)

    def decode(self, tokens: Tensor, cond: Cond | None = None) -> Tensor:
        """`decode_soft` at one-hot."""
        return self.decode_soft(functional.one_hot(tokens, self.shape.V).float(), cond)


def context(seed: int = 0, classes: Sequence[str] = ("bird", "cat", "dog")) -> Context:
    """A context as a run gives it, with the tiny networks, frozen: images [1 8 12], tokens L = 6, G = 2, V = 5."""

    def make(spec: Any) -> Any:
        built = spec.build(out)
        return built.requires_grad_(False).eval() if isinstance(built, Teacher | Tokenizer | Features) else built

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher, tokenizer = TinyTeacher(classes=len(classes)), TinyTokenizer()
    teacher.requires_grad_(False).eval()
    tokenizer.requires_grad_(False).eval()
    out = Context(IMAGE, tuple(classes), make, tokenizer.shape, teacher, tokenizer, Init())
    return out


def _need(condition: bool | Tensor, what: str) -> None:
    assert bool(condition), what


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _cond(n: int, classes: int = 3) -> Cond:
    return Cond(torch.arange(n) % classes)


def _tokens(n: int, shape: TokenShape, masked: bool = False) -> Tensor:
    return torch.randint(shape.V + masked, (n, shape.L, shape.G), generator=_rng(1))


def _probs(n: int, shape: TokenShape) -> Tensor:
    return torch.randn(n, shape.L, shape.G, shape.V, generator=_rng(2)).softmax(-1)


def _near(a: Tensor, b: Tensor, what: str) -> None:
    _need(a.shape == b.shape, f"{what}: shapes {list(a.shape)} and {list(b.shape)} differ")
    gap = (a - b).abs().max().item() if a.numel() else 0.0
    scale = max(1.0, b.abs().max().item() if b.numel() else 0.0)
    _need(gap <= 1e-4 * scale, f"{what}: they differ by up to {gap:.3g}")


def _independent(fn: Callable[[Tensor, Cond], Tensor], x: Tensor, cond: Cond, what: str) -> None:
    """Deterministic, the same in any order, and each sample by itself."""
    full = fn(x, cond)
    order = torch.arange(len(x)).flip(0)
    _need(torch.isfinite(full).all(), f"{what} must be finite")
    _near(fn(x, cond), full, f"{what} must be the same when asked twice")
    _near(fn(x[order], cond[order]), full[order], f"{what} must follow a permutation of the batch")
    _near(fn(x[:1], cond[:1]), full[:1], f"{what} must not depend on the rest of the batch")


def _gradient(y: Tensor, x: Tensor, what: str, zero: bool = False) -> Tensor:
    _need(y.requires_grad, f"{what} must be differentiable, but its graph is cut (detach, argmax, numpy?)")
    (g,) = torch.autograd.grad(y, x, allow_unused=True, retain_graph=True)
    _need(g is not None, f"{what} must be differentiable in its input, but does not depend on it")
    _need(torch.isfinite(g).all(), f"the gradient of {what} must be finite")
    _need(zero or g.abs().max() > 0, f"the gradient of {what} must not be zero")
    return g


def check_reward(reward: Reward, image: tuple[int, int] = (32, 32), classes: int = 3) -> None:
    """One finite score per image [B 3 H W], each sample by itself; finite, non-zero gradients if `differentiable`."""
    img, cond = torch.rand(4, 3, *image, generator=_rng()), _cond(4, classes)
    before = img.clone()
    score = reward(img, cond)
    _need(score.shape == (4,), f"a reward gives one number per image, [4] here, not {list(score.shape)}")
    _need(score.is_floating_point(), f"a reward's scores must be floating point, not {score.dtype}")
    _need(torch.equal(img, before), "a reward must not change its images in place")
    _independent(reward, img, cond, "the score")
    _need(isinstance(reward.differentiable, bool), "a reward must say `differentiable = True` or `False`")
    if reward.differentiable:
        img.requires_grad_()
        g = _gradient(reward(img, cond)[0], img, "the score")
        _need(g[1:].abs().max() == 0, "the score of one image must not depend on the other images")


def check_tokenizer(tokenizer: Tokenizer, image: ImageShape = IMAGE) -> None:
    """Codes in [0, V), images of the right shape in [0, 1], decode == decode_soft at one-hot, gradients to probs."""
    shape, img = tokenizer.shape, torch.rand(3, *image, generator=_rng())
    tokens = tokenizer.encode(img)
    _need(tokens.shape == (3, shape.L, shape.G), f"encode gives [B L G], not {list(tokens.shape)}")
    _need(not tokens.is_floating_point(), f"tokens are whole numbers, not {tokens.dtype}")
    _need(((tokens >= 0) & (tokens < shape.V)).all(), "encode gives classes in [0, V), never the mask id V")
    decoded = tokenizer.decode(tokens, _cond(3))
    _need(decoded.shape == img.shape, f"decode gives {list(img.shape)}, not {list(decoded.shape)}")
    _need((decoded >= 0).all() and (decoded <= 1).all(), "images are in [0, 1]")
    hard = functional.one_hot(tokens, shape.V).float()
    _near(tokenizer.decode_soft(hard, _cond(3)), decoded, "decode_soft at one-hot must equal decode")
    _independent(lambda t, c: tokenizer.decode(t, c), tokens, _cond(3), "the decoded image")
    probs = _probs(3, shape).requires_grad_()
    g = _gradient(tokenizer.decode_soft(probs, _cond(3))[0].sum(), probs, "decode_soft")
    _need(g[1:].abs().max() == 0, "one decoded image must not depend on the other samples")


def check_teacher(teacher: Teacher, classes: int = 3) -> None:
    """embed == soften at one-hot (masks too), `at` logits equal the full ones, features, no mixing, gradients to e."""
    teacher, shape = teacher.eval(), teacher.shape
    tokens, cond = _tokens(4, shape), _cond(4, classes)
    mask = _tokens(4, shape) % 2 == 0
    masked = torch.where(mask, shape.V, tokens)
    e = teacher.embed(masked)
    _need(e.shape == (4, shape.L, teacher.width), f"embed gives [B L D] with D = width, not {list(e.shape)}")
    hard = functional.one_hot(tokens, shape.V).float()
    _near(teacher.soften(hard), teacher.embed(tokens), "soften at one-hot must equal embed")
    _near(teacher.soften(hard, mask), e, "soften at one-hot with masked units must equal embed of the masked tokens")
    p = _probs(4, shape)
    half = (teacher.soften(p) + teacher.soften(hard)) / 2
    _near(teacher.soften((p + hard) / 2), half, "soften is the expected embedding E^T p, linear in the probabilities")
    logits = teacher(e, cond).logits
    _need(logits.shape == (*tokens.shape, shape.V), f"logits are [B L G V], mask excluded, not {list(logits.shape)}")
    _near(teacher(e, cond, at=mask).logits, logits[mask], "logits with `at` must equal the full logits at these units")
    blocks = (0, teacher.depth - 1)
    out = teacher(e, cond, at=torch.zeros_like(mask), features=blocks)
    _need(out.logits.numel() == 0, "an `at` without any True gives no logits")
    _need([f.shape for f in out.features] == [e.shape] * 2, "one [B L D] feature per requested block, in order")
    _independent(lambda x, c: teacher(x, c).logits, e, cond, "the logits")
    _need(teacher(e, teacher.null(cond)).logits.shape == logits.shape, "the unconditional branch must work")
    leaf = e.detach().requires_grad_()
    g = _gradient(teacher(leaf, cond).logits[0].square().sum(), leaf, "the logits")
    _need(g[1:].abs().max() == 0, "the logits of one sample must not depend on the other samples")
    _need(teacher.table_rms().ndim == 0 and teacher.table_rms() > 0, "table_rms is one positive number")
    names = [name for name, _ in teacher.named_parameters()]
    for prefix in teacher.frozen():
        _need(any(n.startswith(prefix) for n in names), f"frozen() names `{prefix}`, but no parameter starts with it")
    inside = {id(m) for m in teacher.modules()} - {id(teacher)}
    _need(all(id(layer) in inside for layer in teacher.layers()), "layers() names modules inside the network")
    _near(copy.deepcopy(teacher)(e, cond).logits, logits, "a deep copy must compute the same")


def check_discriminator(discriminator: Discriminator, made_in: Context) -> None:
    """[B heads] finite scores, no mixing, gradients to the input and to its own parameters, never to the teacher's."""
    net, n = made_in.teacher, 4
    assert net is not None, "give the context that it was built in"
    pixels = discriminator.space == "pixels"
    x = torch.rand(n, *made_in.image, generator=_rng()) if pixels else net.embed(_tokens(n, net.shape, masked=True))
    ratio, cond = torch.linspace(0.1, 0.9, n), _cond(n, len(made_in.classes))
    x = x.detach().requires_grad_()
    scores = discriminator(x, ratio, cond)
    _need(scores.ndim == 2 and len(scores) == n, f"a discriminator gives [B heads], not {list(scores.shape)}")
    _independent(lambda a, c: discriminator(a, torch.full((len(a),), 0.5), c), x, cond, "the scores")
    g = _gradient(scores[0].sum(), x, "the scores")
    _need(g[1:].abs().max() == 0, "the scores of one sample must not depend on the other samples")
    own = [p for p in discriminator.parameters() if p.requires_grad]
    _need(len(own) > 0, "a discriminator has parameters to train")
    shared = {id(p) for p in net.parameters()} & {id(p) for p in discriminator.parameters()}
    _need(not shared, "the frozen teacher must not be registered in the discriminator (hold it in a tuple)")
    torch.autograd.backward(scores.square().sum())
    _need(any(p.grad is not None and p.grad.abs().max() > 0 for p in own), "its parameters must get gradients")
    _need(all(p.grad is None for p in net.parameters()), "the teacher must not get gradients")


def check_sampler(sampler: Sampler, made_in: Context) -> None:
    """Classes only (never the mask id), one sequence per condition, randomness from the given generator alone."""
    net = made_in.teacher
    assert net is not None, "give the context that it was built in"
    cond, shape = _cond(5, len(made_in.classes)), net.shape
    state = torch.random.get_rng_state()
    tokens = sampler.sample(net, cond, _rng(3))
    _need(torch.equal(state, torch.random.get_rng_state()), "draw from the generator passed in, not the global one")
    _need(tokens.shape == (5, shape.L, shape.G), f"a sampler gives [B L G], not {list(tokens.shape)}")
    _need(not tokens.is_floating_point() and tokens.min() >= 0, "tokens are whole numbers from 0")
    _need(tokens.max() < shape.V, "a sampler must never emit the mask id V")
    _need(torch.equal(tokens, sampler.sample(net, cond, _rng(3))), "the same generator must give the same tokens")
    _need(not torch.equal(tokens, sampler.sample(net, cond, _rng(4))), "another seed must give other tokens")
    _need(sampler.passes() > 0, "passes() is the number of network passes per sample")
    _need(all(p.grad is None for p in net.parameters()), "a sampler must not leave gradients on the network")


def check_loss(term: Term, made_in: Context) -> None:
    """A finite scalar whose gradient reaches the student's logits and nothing else; a critic's loss its critic only."""
    teacher, tokenizer, init = made_in.teacher, made_in.tokenizer, made_in.init
    assert teacher is not None, "give the context that it was built in"
    assert tokenizer is not None, "give the context that it was built in"
    assert init is not None, "give the context that it was built in"
    cond = _cond(4, len(made_in.classes))
    student = made_in.copy_teacher()
    roll, _ = rollout(student, cond, init, _rng(5), tokenizer=tokenizer)
    if term.critic is not None:
        with torch.no_grad():
            for i, p in enumerate(term.critic.parameters()):
                p.add_(0.05 * torch.randn(p.shape, generator=_rng(i)))
    value, logs = term.generator(roll)
    _need(value.ndim == 0 and torch.isfinite(value), "generator gives one finite number (before the term's weight)")
    _need(all(torch.as_tensor(v).numel() == 1 for v in logs.values()), "logs are scalars")
    _need(roll.logits.grad is None, "generator must not call backward; the engine does")
    _gradient(value, roll.logits, "the generator's loss")
    frozen = [*teacher.parameters(), *tokenizer.parameters()]
    torch.autograd.backward(value)
    _need(not any(p.requires_grad for p in frozen), "the teacher and the tokenizer stay frozen: no requires_grad")
    _need(all(p.grad is None for p in student.parameters()), "the student is reached through roll.logits only")
    if term.critic is None:
        return
    term.critic.zero_grad()
    before = torch.as_tensor(roll.logits.grad).clone()
    own = list(term.critic.parameters())
    _need(not {id(p) for p in own} & {id(p) for p in frozen}, "the critic must not contain the teacher's parameters")
    _need(term.player is not None, "a term with a critic says how it trains: `player`")
    real = Batch(cond, images=torch.rand(4, *made_in.image, generator=_rng()), tokens=_tokens(4, teacher.shape))
    loss, _ = term.critic_loss(roll.detach(), real)
    _need(loss.ndim == 0 and torch.isfinite(loss), "critic_loss gives one finite number")
    torch.autograd.backward(loss)
    _need(any(p.grad is not None and p.grad.abs().max() > 0 for p in own), "critic_loss must train the critic")
    others = [*frozen, *student.parameters()]
    _need(all(p.grad is None for p in others), "critic_loss must train nothing but the critic")
    _need(torch.equal(torch.as_tensor(roll.logits.grad), before), "critic_loss must not reach the student's logits")
