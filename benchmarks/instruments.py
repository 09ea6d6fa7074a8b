"""What `speed.py` measures with: network passes by hooks, seconds by phase, peak memory of live tensors."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

Watched = tuple[Any, str, str | Callable[..., str]]
"""An object, class or module, the name of its function, and the phase that a call belongs to, perhaps by arguments."""


@contextlib.contextmanager
def counted(networks: Mapping[str, nn.Module], batch: int) -> Iterator[Counter[str]]:
    """Passes per sample of every network: a forward when it runs, its backward when a gradient arrives at its output.

    A forward counts 1, its backward 2 where weights are trained and 1 where only the input gets a gradient.
    """
    passes: Counter[str] = Counter()

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            logits: Tensor = output if isinstance(output, Tensor) else output[0]
            share = len(args[0]) / batch
            passes[f"{name}, forward"] += share  # type: ignore[assignment]
            if logits.requires_grad:
                back = share * (2 if any(p.requires_grad for p in module.parameters()) else 1)
                logits.register_hook(lambda _: passes.update({f"{name}, backward": back}))  # type: ignore[dict-item, no-untyped-call]

        return hook

    handles = [net.register_forward_hook(watch(name)) for name, net in networks.items()]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


class Clock:
    """Seconds of each phase, exclusive: a phase inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner: list[float] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        begin = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - begin
            self.seconds[name] += took - self._inner.pop()  # type: ignore[assignment]
            if self._inner:
                self._inner[-1] += took

    @contextlib.contextmanager
    def watching(self, watched: list[Watched]) -> Iterator[Clock]:
        """Time the given functions while this lasts."""

        def timed(fn: Callable[..., Any], phase: str | Callable[..., str]) -> Callable[..., Any]:
            @functools.wraps(fn)
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.phase(phase if isinstance(phase, str) else phase(*args, **kwargs)):
                    return fn(*args, **kwargs)

            return call

        with contextlib.ExitStack() as stack:
            for owner, name, phase in watched:
                stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), phase)))
            yield self


def auxiliary_phase(*_: object, **__: object) -> str:
    """What a forward of the auxiliary is for: without gradient it is queried for g."""
    return "auxiliary trained" if torch.is_grad_enabled() else "auxiliary queried"


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes of CPU tensors that are alive at once while `run` lasts, of those that it makes itself.

    What kernels allocate behind torch's back, and what the allocator keeps, does not count.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_bytes())["traceEvents"]
    memory = sorted((e["ts"], e["args"]["Total Allocated"], e["args"]["Bytes"]) for e in events if _of_memory(e))
    _, first, change = memory[0]
    return int(max(total for _, total, _ in memory) - (first - change))


def _of_memory(event: dict[str, Any]) -> bool:
    return event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
