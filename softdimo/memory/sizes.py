"""Bytes of networks, of data, and of what is free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from softdimo.memory.imitation import leaves
from softdimo.spec import Player

WIDTH = {"32-true": 4, "bf16-mixed": 4, "bf16-true": 2, "64-true": 8}
"""Bytes of a weight, by `hardware.precision`."""
_DRAWS = {"normal_", "uniform_", "trunc_normal_", "exponential_", "bernoulli_", "random_", "erfinv_",
          "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"}  # fmt: skip


@dataclass(frozen=True)
class Share:
    """Bytes of one network."""

    name: str
    role: str
    """trained or frozen."""
    parameters: int
    weights: int
    gradients: int = 0
    optimizer: int = 0
    ema: int = 0
    accumulates: bool = False
    """Whether its gradients wait for further turns; otherwise they go with the step."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.ema


def share(name: str, net: nn.Module, player: Player | None, precision: str, averages: int = 0) -> Share:
    """What a network takes: weights and buffers; if it is trained gradients, optimizer state and fp32 averages too."""
    width = WIDTH[precision]
    parameters = {id(p): p for p in net.parameters()}.values()
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    count = sum(p.numel() for p in parameters)
    if player is None:  # as it was built: a strategy converts what is trained alone
        return Share(name, "frozen", count, sum(p.numel() * p.element_size() for p in parameters) + buffers)
    free = sum(p.numel() for p in parameters if p.requires_grad)
    moments = 2 if player.optimizer.name != "sgd" else int(player.optimizer.momentum > 0)
    return Share(
        name, "trained", count, count * width + buffers, free * width, moments * free * width, averages * free * 4,
        accumulates=player.accumulate > 1,
    )  # fmt: skip


class Blank(TorchFunctionMode):
    """Leaves fresh tensors on `meta` as they are: drawing numbers that do not exist costs seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Skip in-place random numbers on `meta`, those of `torch.nn.init` too."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWS:
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, Tensor) and target.device.type == "meta":
                return target
        return func(*args, **kwargs)


def held(value: object) -> int:
    """Bytes of the tensors and arrays that an object holds, each storage once."""
    sizes: dict[int, int] = {}
    for leaf in leaves(value):
        key = leaf.untyped_storage()._cdata if isinstance(leaf, Tensor) else id(leaf)
        size = getattr(leaf, "nbytes", 0)
        sizes.setdefault(key, int(size) if isinstance(size, int) else 0)
    return sum(sizes.values())


def device(accelerator: str) -> str:
    """Where a run would compute: `cuda` or `cpu`."""
    return "cuda" if accelerator in ("auto", "cuda") and torch.cuda.is_available() else "cpu"


def slow_in_bf16(accelerator: str) -> bool:
    """Whether a run would compute on a processor without instructions for bf16, where products take far longer."""
    kernels = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[no-untyped-call]
    return accelerator in ("auto", "cpu") and device(accelerator) == "cpu" and not kernels


def available(accelerator: str) -> tuple[str, int]:
    """(device, free bytes) of the device that a run would use."""
    if device(accelerator) == "cuda":
        return torch.cuda.get_device_name(0), int(torch.cuda.mem_get_info()[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        return "CPU", int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return "CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def human(size: float) -> str:
    """`61.2 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
