"""Networks without numbers, to see what their passes hold on a device without its memory, or the device."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")
TRAINED = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
"""Type of the weights that a player trains, by `hardware.precision`; as they were built otherwise."""


class Imitation:
    """Inside its `with`, tensors have a shape, a type and a device (cpu or cuda), but no memory, as torch's fake ones.

    Kernels are chosen as that device would choose them, which decides what they keep.
    """

    def __init__(self, device: str, precision: str) -> None:
        self.device, self.precision = device, precision
        self._known: dict[int, Any] = {}
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> Imitation:
        mixed = self.precision == "bf16-mixed"
        self._inside.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        self._inside.enter_context(_No())  # type: ignore[no-untyped-call]
        self._inside.enter_context(torch.autocast(self.device, torch.bfloat16, enabled=mixed, cache_enabled=False))
        return self

    def __exit__(self, *error: object) -> None:
        self._inside.close()

    def of(self, value: T, trained: bool = False) -> T:
        """A deep copy, its tensors imitated; `trained` networks in the precision of `hardware.precision`.

        Tensors that were imitated before, inside another value, stay what they became.
        """
        for tensor in leaves(value):
            if isinstance(tensor, Tensor) and id(tensor) not in self._known:
                self._known[id(tensor)] = self._like(tensor, trained)
        return copy.deepcopy(value, self._known)

    def _like(self, tensor: Tensor, trained: bool) -> Tensor:
        dtype = TRAINED.get(self.precision, tensor.dtype) if trained and tensor.is_floating_point() else tensor.dtype
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=self.device)
        return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


class _No(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The answer of imitations to yes or no, as in `at.any()`: is there any unit to compute?"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = args[0] if func is torch.ops.aten._local_scalar_dense.default else None
        if isinstance(asked, FakeTensor) and asked.dtype == torch.bool:
            return False
        return func(*args, **(kwargs or {}))


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made inside its `with` and still alive, imitated ones too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        """Alive."""
        self.most = 0
        """Alive at once, at most."""
        self._alive: set[int] = set()
        self._older: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _given(args, kwargs):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive:
                self._older[storage._cdata] = storage
        out = func(*args, **(kwargs or {}))
        for tensor in _given(out):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._alive and key not in self._older:
                self._alive.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _given(*values: Any) -> Iterator[Tensor]:
    """Tensors among arguments or results of an operator."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _given(*value)
        elif isinstance(value, dict):
            yield from _given(*value.values())


def leaves(value: object, _seen: dict[int, object] | None = None) -> Iterator[object]:
    """The tensors and arrays (what has `nbytes` and a `dtype`) inside collections and attributes, each once."""
    seen = {} if _seen is None else _seen
    if id(value) in seen or isinstance(value, str | bytes | int | float | type | None):
        return
    seen[id(value)] = value  # which keeps it, so that no other object gets its id
    if isinstance(value, Tensor) or (hasattr(value, "nbytes") and hasattr(value, "dtype")):
        yield value
        return
    inner: list[object] = []
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    elif hasattr(value, "__dict__"):
        inner = list(vars(value).values())
    for item in inner:
        yield from leaves(item, seen)
