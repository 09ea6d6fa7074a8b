"""Low-rank adapters around a frozen teacher: y = W x + b + (alpha / rank) B A x (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from softdimo.errors import PluginError
from softdimo.kinds import Cond, Output, Teacher
from softdimo.shapes import Embedding, Mask, Probs, Tokens
from softdimo.spec import Positive, Settings

_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules of torch that compute with the weights of their linear layers without calling these."""


class Lora(Settings):
    """The teacher's own weights, frozen and shared with it, and trainable low-rank adapters on its linear layers."""

    use: Literal["lora"]
    """`lora`."""
    rank: Annotated[int, Field(ge=1)] = 32
    """Rank of the adapters."""
    alpha: Positive | None = None
    """Scale of the adapters, times the rank; the rank when null, which makes the scale 1."""

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class LowRank(nn.Module):
    """scale B A x: [... in] -> [... out]. B is zero at first; A is drawn once for all runs, as a copy has no seed."""

    def __init__(self, layer: nn.Linear, settings: Lora, rng: torch.Generator) -> None:
        super().__init__()
        like = layer.weight
        down = torch.randn(settings.rank, layer.in_features, generator=rng, device="cpu") * layer.in_features**-0.5
        self.down = nn.Parameter(down.to(like.device, like.dtype))
        self.up = nn.Parameter(torch.zeros(layer.out_features, settings.rank, device=like.device, dtype=like.dtype))
        self.scale = settings.scale

    def forward(self, x: Tensor) -> Tensor:
        """In the precision of the adapter's weights."""
        y: Tensor = linear(linear(x.to(self.down.dtype), self.down) * self.scale, self.up)
        return y


class Adapted(nn.Module):
    """A frozen linear layer and its adapter."""

    def __init__(self, layer: nn.Linear, adapter: LowRank, name: str) -> None:
        super().__init__()
        self.layer, self.adapter, self.name = layer, adapter, name
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Their sum, in the precision of the layer's output."""
        y: Tensor = self.layer(x)
        out: Tensor = y + self.adapter(x).to(y.dtype)
        return out

    @property
    def weight(self) -> Tensor:
        """Not there: whoever reads it would pass the adapter by."""
        raise PluginError(
            f"auxiliary: the teacher reads the weight of `{self.name}` without calling the layer, so that an adapter "
            "there would do nothing; use auxiliary: copy"
        )


class LoraTeacher(Teacher):
    """psi = the teacher plus adapters, which alone are its parameters and its state; equal to the teacher at first.

    The network inside is built anew around the teacher's very parameters, so that the teacher never sees the adapters,
    and is held in a tuple, so that frozen weights are neither trained nor saved nor counted twice. Buffers are copied.
    """

    def __init__(self, teacher: Teacher, settings: Lora) -> None:
        super().__init__()
        self.shape, self.width, self.depth = teacher.shape, teacher.width, teacher.depth
        net = copy.deepcopy(teacher, {id(p): p for p in teacher.parameters()})
        self.adapters = nn.ModuleDict({name.replace(".", "/"): a for name, a in _adapt(net, settings)})
        if not self.adapters:
            raise PluginError("auxiliary: the teacher has no linear layer that may train; use auxiliary: copy")
        self._net = (net,)

    def train(self, mode: bool = True) -> LoraTeacher:
        """Training or evaluation mode, for the network inside too."""
        self._net[0].train(mode)
        super().train(mode)
        return self

    def embed(self, tokens: Tokens) -> Embedding:
        """The teacher's."""
        return self._net[0].embed(tokens)

    def soften(self, probs: Probs, mask: Mask | None = None) -> Embedding:
        """The teacher's."""
        return self._net[0].soften(probs, mask)

    def forward(self, e: Embedding, cond: Cond, at: Mask | None = None, features: Sequence[int] = ()) -> Output:
        """See `Teacher.forward`."""
        e = e.to(next(self._net[0].parameters()).dtype)  # a strategy may have brought it to that of the adapters
        out: Output = self._net[0](e, cond, at, features)
        return out

    def table_rms(self) -> Tensor:
        """The teacher's."""
        return self._net[0].table_rms()

    def null(self, cond: Cond) -> Cond:
        """The teacher's."""
        return self._net[0].null(cond)

    def layers(self) -> Sequence[nn.Module]:
        """The teacher's, with adapters."""
        return self._net[0].layers()


def _adapt(net: Teacher, settings: Lora) -> Iterator[tuple[str, LowRank]]:
    """Replace the linear layers of `net` that `frozen()` lets train; their names and adapters, each layer once."""
    rng = torch.Generator().manual_seed(0)
    named = dict(net.named_parameters(remove_duplicate=False))
    kept = {id(p) for name, p in named.items() if name.startswith(net.frozen())}
    made: dict[nn.Module, Adapted] = {}
    for path, parent in list(net.named_modules()):
        if isinstance(parent, _READERS):
            raise PluginError(
                f"auxiliary: `{path}` ({type(parent).__name__}) computes with the weights of its linear layers without "
                "calling them, so that adapters there would do nothing; use auxiliary: copy"
            )
        for name, child in list(parent._modules.items()):
            if not isinstance(child, nn.Linear) or id(child.weight) in kept:
                continue
            if child not in made:
                full = f"{path}.{name}" if path else name
                made[child] = Adapted(child, LowRank(child, settings, rng), full)
                yield full, made[child].adapter
            setattr(parent, name, made[child])
