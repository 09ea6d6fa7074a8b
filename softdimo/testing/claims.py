"""What the checks are made of: claims, and the inputs that they are tried on."""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softdimo.kinds import NULL, NULL_LABEL, Cond, TokenShape


def need(condition: bool | Tensor, what: str) -> None:
    """Raise AssertionError, saying `what` the contract asks, unless the condition holds."""
    if not bool(condition):
        raise AssertionError(what)


def near(a: Tensor, b: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """The same shape, and equal up to rounding."""
    need(a.shape == b.shape, f"{what}: shapes {list(a.shape)} and {list(b.shape)} differ")
    gap = (a - b).abs().max().item() if a.numel() else 0.0
    scale = max(1.0, b.abs().max().item() if b.numel() else 0.0)
    need(gap <= tolerance * scale, f"{what}: they differ by up to {gap:.3g}")


def works(fn: Callable[[], Any], what: str) -> Any:
    """The result of `fn`; an error becomes an AssertionError that says what must work."""
    try:
        return fn()
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what} must work, but raises {type(error).__name__}: {error}") from error


def independent(fn: Callable[[Tensor, Cond], Tensor], x: Tensor, cond: Cond, what: str) -> None:
    """Finite, deterministic, the same in any order, and each sample by itself."""
    with no_global_randomness(what):
        full = fn(x, cond)
    order = torch.arange(len(x)).flip(0)
    need(torch.isfinite(full).all(), f"{what} must be finite")
    near(fn(x, cond), full, f"{what} must be the same when asked twice")
    near(fn(x[order], cond[order]), full[order], f"{what} must follow a permutation of the batch")
    alone = works(lambda: fn(x[:1], cond[:1]), f"{what} of a batch of one")
    near(alone, full[:1], f"{what} must not depend on the rest of the batch (is a network in training mode?)")


def gradient(y: Tensor, x: Tensor, what: str, zero: bool = False) -> Tensor:
    """dy/dx of a scalar: it exists, it is finite and, unless it may be, not zero."""
    need(y.requires_grad, f"{what} must be differentiable, but its graph is cut (detach, argmax, numpy?)")
    (g,) = torch.autograd.grad(y, x, allow_unused=True, retain_graph=True)
    need(g is not None, f"{what} must be differentiable in its input, but does not depend on it")
    need(torch.isfinite(g).all(), f"the gradient of {what} must be finite")
    need(zero or g.abs().max() > 0, f"the gradient of {what} must not be zero")
    return g


def apart(y: Tensor, x: Tensor, what: str) -> None:
    """`gradient` of y [B ...]: no sample's gradient reaches another sample of x [B ...], and not all of them are 0."""
    rows = [gradient(row.sum(), x, what, zero=True) for row in y]
    need(any(g.abs().max() > 0 for g in rows), f"the gradient of {what} must not be zero")
    for i, g in enumerate(rows):
        others = torch.arange(len(g)) != i
        need(g[others].abs().max() == 0, f"{what}: one sample must not depend on the other samples")


@contextlib.contextmanager
def no_global_randomness(what: str) -> Iterator[None]:
    """The block leaves the global generators of torch, numpy and Python as they are."""

    def states() -> bytes:
        return pickle.dumps((torch.random.get_rng_state().numpy(), np.random.get_state(), random.getstate()))

    before = states()
    yield
    need(before == states(), f"{what} must not draw from a global random generator, nor seed one")


@contextlib.contextmanager
def unchanged(what: str, **tensors: Tensor | None) -> Iterator[None]:
    """The block does not write into these tensors."""
    before = {name: t.detach().clone() for name, t in tensors.items() if t is not None}
    yield
    for name, t in before.items():
        now = tensors[name]
        need(now is not None and torch.equal(now, t), f"{what} must not change its {name} in place")


@contextlib.contextmanager
def left_alone(what: str, **nets: nn.Module | None) -> Iterator[None]:
    """The block leaves networks as they are: no gradients, the same numbers, the same modes."""
    present = {name: net for name, net in nets.items() if net is not None}
    before = {name: _state(net) for name, net in present.items()}
    yield
    for name, net in present.items():
        own = list(net.parameters())
        flags, modes, numbers = before[name]
        need(
            flags == [p.requires_grad for p in own] and all(p.grad is None for p in own),
            f"{what} must not reach the weights of the {name}: they got gradients, or another requires_grad",
        )
        need(modes == [m.training for m in net.modules()], f"{what} must leave the {name} in its mode (train, eval)")
        same = all(torch.equal(a, b) for a, b in zip(numbers, (*own, *net.buffers()), strict=True))
        need(same, f"{what} must not change the weights or buffers of the {name}")


def _state(net: nn.Module) -> tuple[list[bool], list[bool], list[Tensor]]:
    own = list(net.parameters())
    numbers = [t.detach().clone() for t in (*own, *net.buffers())]
    return [p.requires_grad for p in own], [m.training for m in net.modules()], numbers


def rng(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def labels(n: int, classes: int = 3) -> Cond:
    """All classes in turn."""
    return Cond(torch.arange(n) % classes)


def encoded(n: int, **shapes: tuple[int, ...]) -> Cond:
    """Conditions of prompts: by name random encodings [n *shape], and those of one unconditional prompt."""
    made = {name: torch.randn(n + 1, *shape, generator=rng(i)) for i, (name, shape) in enumerate(shapes.items())}
    null = {f"{NULL}{name}": t[n:].expand(n, *t.shape[1:]) for name, t in made.items()}
    return Cond(torch.full((n,), NULL_LABEL), tensors={name: t[:n] for name, t in made.items()} | null)


def tokens(n: int, shape: TokenShape, masked: bool = False) -> Tensor:
    """Random ids [n L G], with masks among them if asked for."""
    return torch.randint(shape.V + masked, (n, shape.L, shape.G), generator=rng(1))


def probs(n: int, shape: TokenShape) -> Tensor:
    """Random probabilities [n L G V]."""
    return torch.randn(n, shape.L, shape.G, shape.V, generator=rng(2)).softmax(-1)
