"""Prompts in data sets, training and guidance: encodings come with batches, and a dropped prompt is the null one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from softdimo.engine.fit import teacher_objective
from softdimo.inputs.cursor import Conditions, Shuffled, Tokenized
from softdimo.inputs.encodings import Encodings
from softdimo.inputs.prompted import Prompted
from softdimo.kinds import Batch, Cond, Context, Data, ImageShape, Output, TokenShape
from softdimo.math.guidance import Guidance, guided_logits
from softdimo.math.init import Init
from softdimo.math.rollout import rollout
from softdimo.testing import TinyTokenizer
from softdimo_plugins.losses.dimo import DiMO
from tests.prompted import PROMPTS, ReaderNet, WordsNet

SHAPE = TokenShape(2, 3, 2, 5)
CPU = torch.device("cpu")


class Captioned(Data):
    """Eight prompts, with images or without."""

    image, classes = ImageShape(1, 8, 12), ()

    def __init__(self, images: bool = True) -> None:
        self.has_images, self.met = images, None

    def meet(self, tokenizer) -> None:
        self.met = tokenizer

    def source(self, split: str) -> Captions:
        return Captions(self.has_images)

    def conditions(self, n: int) -> Cond:
        return Captions(False).get(torch.arange(n) % 8).cond

    def fingerprint(self) -> str:
        return "captions"


class Captions:
    def __init__(self, images: bool) -> None:
        self.images, self.read = images, 0

    def __len__(self) -> int:
        return 8

    def get(self, index: Tensor) -> Batch:
        self.read += 1
        cond = Cond(torch.full((len(index),), -1), tuple(PROMPTS[i] for i in index.tolist()))
        return Batch(cond, index.view(-1, 1, 1, 1).expand(-1, 1, 8, 12) / 8 if self.images else None)


def prompted(data: Data) -> tuple[Prompted, WordsNet]:
    torch.manual_seed(0)
    net = WordsNet()
    return Prompted(data, Encodings(lambda: net, CPU)), net


def test_every_way_to_a_batch_has_encodings() -> None:
    data, net = prompted(Captioned())
    wanted = net.encode(PROMPTS)
    index = torch.tensor([3, 0])
    for cond in (
        data.source("train").get(index).cond,
        data.source("held_out").cond(index),  # type: ignore[attr-defined]
        data.ready(data.conditions(4)[index]),
        Conditions(data).source("train").get(index).cond,
        Conditions(data).ready(data.conditions(4)[index]),
    ):
        assert cond.prompts == (PROMPTS[3], PROMPTS[0])
        assert torch.equal(cond.tensors["states"], wanted["states"][index])
        assert torch.equal(cond.tensors["null.pooled"], net.encode(["ugly"])["pooled"].expand(2, -1))
    assert not data.conditions(4).tensors
    assert not data.reference().get(index).cond.tensors
    assert data.source("train").get(index).images is not None
    assert len(data.source("train")) == 8
    assert (data.fingerprint(), data.image, data.classes, data.has_images) == ("captions", (1, 8, 12), (), True)


def test_conditions_alone_leave_images_where_they_are() -> None:
    class Lazy(Captions):
        def cond(self, index: Tensor) -> Cond:
            return Captions(False).get(index).cond

        def get(self, index: Tensor) -> Batch:
            raise AssertionError("an image was read")

    class LazyData(Captioned):
        def source(self, split: str) -> Lazy:
            return Lazy(True)

    data, _ = prompted(LazyData())
    assert "states" in Conditions(data).source("train").get(torch.tensor([1])).cond.tensors


def test_tokens_keep_their_prompts() -> None:
    torch.manual_seed(0)
    data, net = prompted(Tokenized(Captioned(), TinyTokenizer(), CPU))
    batch = data.source("train").get(torch.tensor([5, 2]))
    assert batch.tokens is not None
    assert torch.equal(batch.cond.tensors["pooled"], net.encode([PROMPTS[5], PROMPTS[2]])["pooled"])


def test_the_tokenizer_meets_the_data_within() -> None:
    inner = Captioned()
    prompted(inner)[0].meet("tokenizer")  # type: ignore[arg-type]
    assert inner.met == "tokenizer"


def same(a: Cond, b: Cond) -> bool:
    return a.prompts == b.prompts and all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)


def test_a_stream_goes_on_where_it_was() -> None:
    data, net = prompted(Captioned())
    stream = data.stream(3, seed=1)
    assert iter(stream) is stream
    for _ in range(3):
        next(stream)
    state = stream.state_dict()
    assert state == {"epoch": 1, "offset": 3}
    rest = [next(stream).cond for _ in range(4)]
    again = data.stream(3, seed=1)
    again.load_state_dict(state)
    assert all(same(next(again).cond, cond) for cond in rest)
    plain = Shuffled(Captions(True), 3, 1)
    assert [next(plain).cond.prompts for _ in range(7)][3:] == [cond.prompts for cond in rest]
    assert len(net.encoded) == len(set(net.encoded)) == 9  # eight prompts and the unconditional one, once each


class Recording(nn.Module):
    """Stands for a teacher in training; keeps the conditions that it gets."""

    def __init__(self, net: ReaderNet) -> None:
        super().__init__()
        self.net, self.seen = net, []

    def embed(self, tokens: Tensor) -> Tensor:
        return self.net.embed(tokens)

    def forward(self, e: Tensor, cond: Cond, at: Tensor | None = None) -> Output:
        self.seen.append(cond)
        return self.net(e, cond, at)


def ready(n: int = 8) -> Cond:
    data, _ = prompted(Captioned())
    return data.ready(data.conditions(n))


@pytest.mark.parametrize(("drop", "dropped"), [(0.0, 0), (1.0, 64), (0.4, None)])
def test_a_dropped_condition_is_that_of_the_unconditional_prompt(drop: float, dropped: int | None) -> None:
    torch.manual_seed(0)
    net, cond = ReaderNet(SHAPE), ready(64)
    watch, rng = Recording(net), torch.Generator().manual_seed(3)
    tokens = torch.randint(SHAPE.V, (64, SHAPE.L, SHAPE.G), generator=rng)
    loss, _ = teacher_objective(net, "arccos", 0.0, drop, rng)(watch, Batch(cond, tokens=tokens), 0.0)
    assert loss.isfinite()
    (seen,) = watch.seen
    gone = (seen.tensors["states"] == cond.tensors["null.states"]).flatten(1).all(1)
    kept = (seen.tensors["states"] == cond.tensors["states"]).flatten(1).all(1)
    pooled = (seen.tensors["pooled"] == cond.tensors["null.pooled"]).all(1)
    assert torch.equal(gone, ~kept)
    assert torch.equal(gone, pooled)  # together, or not at all
    assert 10 < int(gone.sum()) < 45 if dropped is None else int(gone.sum()) == dropped
    assert torch.equal(seen.tensors["null.states"], cond.tensors["null.states"])
    assert (seen.labels == -1).all()


def test_guidance_takes_the_unconditional_prompt_as_its_other_branch() -> None:
    torch.manual_seed(0)
    net, cond = ReaderNet(SHAPE), ready(4)
    e = net.embed(torch.full((4, SHAPE.L, SHAPE.G), SHAPE.V))
    data, _ = prompted(Captioned())
    null = data.ready(Cond(torch.full((4,), -1), ("ugly",) * 4))
    z_c, z_u = net(e, cond).logits, net(e, null).logits
    assert not torch.allclose(z_c, z_u, atol=1e-2)
    assert torch.allclose(net(e, net.null(cond)).logits, z_u)
    assert torch.allclose(guided_logits(net, e, cond, 3.0), z_u + 3 * (z_c - z_u), atol=1e-5)
    assert same(net.null(net.null(cond)), net.null(cond))


def test_distillation_guides_by_the_unconditional_prompt() -> None:
    """The gradient of Di[M]O changes with the null encodings where there is guidance, and only there."""
    cond = ready(4)
    other = Cond(cond.labels, cond.prompts, {**cond.tensors, "null.states": cond.tensors["null.states"] + 2})

    def gradient(cond: Cond, scale: float) -> Tensor:
        torch.manual_seed(0)
        teacher = ReaderNet(SHAPE).requires_grad_(False).eval()
        context = Context(ImageShape(1, 8, 12), (), lambda spec: spec, SHAPE, teacher)
        term = DiMO(name="dimo", guidance=Guidance(scale=scale)).build(context)
        with torch.no_grad():
            for p in term.auxiliary.parameters():
                p.add_(0.2 * torch.randn(p.shape))
        roll, _ = rollout(context.copy_teacher(), cond, Init(), torch.Generator().manual_seed(1))
        loss, _ = term.generator(roll)
        (g,) = torch.autograd.grad(loss, roll.logits)
        critic, _ = term.critic_loss(roll.detach(), Batch(cond))
        assert critic.isfinite()
        return g

    assert torch.equal(gradient(cond, 1.0), gradient(other, 1.0))
    assert not torch.allclose(gradient(cond, 3.0), gradient(other, 3.0), atol=1e-4)
    assert torch.equal(gradient(cond, 3.0), gradient(cond, 3.0))
