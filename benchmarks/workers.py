"""Loops in processes of their own, so that each has the memory allocator that its program would have.

softdimo asks the C library to keep freed memory (`engine/hardware.py`); the published loop runs as torch comes.
"""

from __future__ import annotations

import multiprocessing
import resource
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from instruments import Clock, counted, peak_bytes
from loops import build, maskgit
from torch.utils.flop_counter import FlopCounterMode


class Worker:
    """A process with loops of one job, which does what it is told, one thing at a time."""

    def __init__(self, sizes: dict[str, Any], names: tuple[str, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, sizes, names), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, what: str, *arguments: Any) -> Any:
        """Do it, wait for it, return what it gives."""
        self.pipe.send((what, *arguments))
        done, value = self.pipe.recv()
        if not done:
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        """End the process; its memory is free afterwards."""
        self.pipe.close()
        self.process.join()


def _serve(pipe: Connection, sizes: dict[str, Any], names: tuple[str, ...]) -> None:
    job = maskgit(**sizes)
    loops = build(job, names)

    def count(name: str) -> dict[str, Any]:
        """A step, the network passes and the products in it."""
        with counted(loops[name].networks, job.train.batch_size) as passes, FlopCounterMode(display=False) as products:
            loops[name].step()
        networks = loops[name].networks
        return {
            "passes": sum(passes.values()),
            "passes_of": dict(passes),
            "flop": products.get_total_flops(),
            "parameters": {n: sum(p.numel() for p in net.parameters()) for n, net in networks.items()},
        }

    def step(name: str) -> dict[str, float]:
        """A step; seconds of its phases."""
        clock = Clock()
        with clock.watching(loops[name].watched), clock.phase("rest"):
            loops[name].step()
        return dict(clock.seconds)

    def peak(name: str) -> dict[str, int]:
        """Most bytes of tensors in a loop's first two steps, with its networks; asked of a worker without loops.

        The second step is the first with Adam's moments in memory. `resident` is the most that this process had.
        """
        tensors = peak_bytes(partial(_two_steps, sizes, name))
        return {"tensors": tensors}

    def resident(name: str) -> int:
        """Most bytes that the system gave to this process, two steps of a loop made without instruments."""
        _two_steps(sizes, name)
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    can = {"count": count, "step": step, "peak": peak, "resident": resident}
    while True:
        try:
            what, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, can[what](*arguments)))
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))


def _two_steps(sizes: dict[str, Any], name: str) -> None:
    (loop,) = build(maskgit(**sizes), (name,)).values()
    for _ in range(2):
        loop.step()
