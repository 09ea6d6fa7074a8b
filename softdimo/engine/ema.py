"""Exponential moving averages of one network, several half-lives at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softdimo.engine.sharding import fold, piece


class EMA:
    """fp32 averages of the trainable parameters. decay = 2^(-1/half_life), warmed up as min(decay, (1+k)/(10+k))."""

    def __init__(self, module: nn.Module, half_lives: Sequence[float], warmup: bool = True) -> None:
        self.half_lives, self.warmup, self.updates = tuple(half_lives), warmup, 0
        self._live = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.averages: list[dict[str, Tensor]] = [
            {n: p.detach().float().clone() for n, p in self._live.items()} for _ in self.half_lives
        ]

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the live weights."""
        self.updates += 1
        live = [p.detach().float() for p in self._live.values()]
        for half_life, average in zip(self.half_lives, self.averages, strict=True):
            decay = 0.5 ** (1 / half_life)
            if self.warmup:
                decay = min(decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(list(average.values()), live, 1 - decay)

    def weights(self, module: nn.Module, index: int = 0) -> dict[str, Tensor]:
        """State dict of `module` with the index-th average in place of its trainable parameters."""
        state = dict(module.state_dict())
        if self.averages:
            state |= {n: a.to(state[n].dtype) for n, a in self.averages[index].items()}
        return state

    @contextlib.contextmanager
    def applied(self, module: nn.Module, index: int = 0) -> Iterator[None]:
        """`module` with the index-th average in place of its trainable parameters, until the block ends."""
        if not self.averages:
            yield
            return
        live = [p.detach().clone() for p in self._live.values()]
        self._put(module, self.averages[index].values())
        try:
            yield
        finally:
            self._put(module, live)

    @torch.no_grad()
    def _put(self, module: nn.Module, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self._live.values(), values, strict=True):
            parameter.copy_(value)
        fold(module)

    def state_dict(self) -> dict[str, Any]:
        """Averages (in pieces where the network is) and the number of updates."""
        return {"averages": self.averages, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from saved averages, which are whole."""
        self.updates = int(state["updates"])
        for mine, saved in zip(self.averages, state["averages"], strict=True):
            for name, value in mine.items():
                value.copy_(piece(saved[name], value))
