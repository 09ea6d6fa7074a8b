"""Memory of a training run, estimated from networks on the `meta` device: nothing is allocated and nothing trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from softdimo.kinds import Cond, Discriminator, Teacher, Term, Tokenizer
from softdimo.spec import Player

WIDTH = {"32-true": 4, "bf16-mixed": 4, "bf16-true": 2, "64-true": 8}
"""Bytes of a weight, by `hardware.precision`."""
_DRAWS = {"normal_", "uniform_", "trunc_normal_", "exponential_", "bernoulli_", "random_", "erfinv_",
          "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"}  # fmt: skip
LOGITS = 3.5
"""Tensors of logits that distribution matching holds: five at the masked units, which are 64 % of all on average."""


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
    if player is None:
        return Share(name, "frozen", count, count * width + buffers)
    free = sum(p.numel() for p in parameters if p.requires_grad)
    moments = 2 if player.optimizer.name != "sgd" else int(player.optimizer.momentum > 0)
    return Share(
        name, "trained", count, count * width + buffers, free * width, moments * free * width, averages * free * 4
    )


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


def saved_bytes(forward: Callable[[], object], without: Sequence[nn.Module] = ()) -> int:
    """Bytes that autograd keeps for the backward of `forward`, each storage once, parameters left out."""
    seen: dict[int, Any] = {}
    known = {p.untyped_storage()._cdata for net in without for p in (*net.parameters(), *net.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            seen[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = forward()
        total: int = sum(storage.nbytes() for storage in seen.values())
    del kept
    return total


@dataclass(frozen=True)
class Phase:
    """What one turn holds at its peak, beside the networks."""

    name: str
    size: int
    """Bytes."""
    unknown: str = ""
    """Why a part of it could not be estimated; empty where all could."""


def student_phases(
    student: Teacher,
    teacher: Teacher,
    tokenizer: Tokenizer | None,
    terms: Mapping[str, Term],
    cond: Cond,
    precision: str,
) -> Iterator[Phase]:
    """The generator's turn (student, logits, the largest term) and every critic's turn, for a batch of conditions.

    A term that keeps its critic's pass for the critic's turn (`share_t`) holds it beside the others. Tensors that are
    alive count; what an allocator keeps on top does not.
    """
    frozen = [net for net in (teacher, tokenizer) if net is not None]
    half = 0.5 if precision == "bf16-mixed" else 1.0
    B, s = len(cond), student.shape
    z = B * s.L * s.G * s.V * 4
    e = torch.empty(B, s.L, student.width, device="meta")
    probs = torch.empty(B, s.L, s.G, s.V, device="meta", requires_grad=True)
    pictures, unknown = 0, []
    if tokenizer is not None and any(not isinstance(t.critic, Teacher) for t in terms.values()):
        pictures, why = _try(lambda: tokenizer.decode_soft(probs, cond), (tokenizer,))
        unknown += [f"decoder: {why}"] if why else []
    body, why = _try(lambda: student(e, cond), (student,))
    unknown += [f"student: {why}"] if why else []
    largest, kept, critics = 0.0, 0.0, []
    for name, term in terms.items():
        critic = term.critic
        if isinstance(critic, Teacher):
            own, why = _try(lambda net=critic: net(e, cond), (critic,))  # type: ignore[misc]
            largest = max(largest, LOGITS * z + own * half / max(1, critic.depth))  # the guided teacher passes by
            kept += own * half if getattr(getattr(term, "spec", None), "share_t", False) else 0
            critics.append(Phase(f"turn of {name}'s critic", int(own * half + 2 * z), why))
        elif isinstance(critic, Discriminator):
            own, why = _try(lambda net=critic: _judge(net, tokenizer, e, probs, cond), [critic, *frozen])  # type: ignore[misc]
            if why and critic.space == "embedding":  # a trunk that looks at values: at most the whole teacher
                own, why = _try(lambda: teacher(e.clone().requires_grad_(), cond), frozen)
            largest = max(largest, own * half + z)
            critics.append(Phase(f"turn of {name}'s critic", int(2 * own * half + z), why))
        elif critic is not None:
            critics.append(Phase(f"turn of {name}'s critic", 0, "not estimated for a critic of this kind"))
        else:
            largest = max(largest, pictures * half + z)
    yield Phase("generator's turn", int((body + pictures) * half + kept + 2 * z + largest), "; ".join(unknown))
    yield from critics


def fit_phase(net: nn.Module, loss: Callable[[], object]) -> Phase:
    """One turn of a network that is trained on data."""
    own, why = _try(loss, (net,))
    return Phase("training turn", own, why)


def _judge(net: Discriminator, tokenizer: Tokenizer | None, e: Tensor, probs: Tensor, cond: Cond) -> object:
    ratio = torch.zeros(len(cond), device="meta")
    if net.space == "pixels":
        if tokenizer is None:
            raise ValueError("a discriminator of pixels needs a tokenizer")
        return net(tokenizer.decode_soft(probs, cond), ratio, cond)
    return net(e.clone().requires_grad_(), ratio, cond)


def _try(forward: Callable[[], object], without: Sequence[nn.Module]) -> tuple[int, str]:
    """Saved bytes, or 0 and why they cannot be told: some networks need real numbers to run."""
    try:
        return saved_bytes(forward, without), ""
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return 0, (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def held(value: object, _seen: set[int] | None = None) -> int:
    """Bytes of the tensors and arrays that an object holds, each once."""
    seen = set() if _seen is None else _seen
    if id(value) in seen or isinstance(value, str | bytes | int | float | type | None):
        return 0
    seen.add(id(value))
    size = getattr(value, "nbytes", None)
    if isinstance(value, Tensor) or (isinstance(size, int) and hasattr(value, "dtype")):
        key = value.untyped_storage()._cdata if isinstance(value, Tensor) else id(value)
        if isinstance(value, Tensor) and key in seen:
            return 0
        seen.add(key)
        return int(size or 0)
    inner: list[object] = []
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    elif hasattr(value, "__dict__"):
        inner = list(vars(value).values())
    return sum(held(item, seen) for item in inner)


def available(accelerator: str) -> tuple[str, int]:
    """(device, free bytes) of the device that a run would use."""
    if accelerator in ("auto", "cuda") and torch.cuda.is_available():
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
