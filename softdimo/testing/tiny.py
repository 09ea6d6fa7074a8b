"""A teacher and a tokenizer of a few hundred numbers, and the context that a run would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from softdimo.kinds import Cond, Context, Discriminator, Features, ImageShape, Output, Teacher, Tokenizer, TokenShape
from softdimo.math.init import Init

N = TypeVar("N", bound=nn.Module)
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
    """A context as a run gives it, with the tiny networks, frozen: images [1 8 12], tokens L = 6, G = 2, V = 5.

    Its `make` builds a nested component as a run does: with weights of the seed, frozen if it is a network that players
    look through, and as the same object for the same settings, unless it is a discriminator. Feature networks have seen
    noise, so that their batch norm knows what comes.
    """
    made: dict[str, Any] = {}

    def make(spec: Any) -> Any:
        key = f"{type(spec).__qualname__} {spec!r}"
        if key not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                built = spec.build(out)
                if isinstance(built, Features):
                    _show_noise(built)
            if isinstance(built, Discriminator):
                return built
            made[key] = frozen(built) if isinstance(built, Teacher | Tokenizer | Features) else built
        return made[key]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher, tokenizer = frozen(TinyTeacher(classes=len(classes))), frozen(TinyTokenizer())
    out = Context(IMAGE, tuple(classes), make, tokenizer.shape, teacher, tokenizer, Init())
    return out


@torch.no_grad()
def _show_noise(net: Features) -> None:
    """Let running statistics settle; fresh ones pass next to nothing on."""
    noise = torch.rand(32, *IMAGE)
    for _ in range(30):
        net.train()(noise)


def frozen(net: N) -> N:
    """The network, without gradients to its weights, in evaluation mode."""
    net.requires_grad_(False).eval()
    return net
