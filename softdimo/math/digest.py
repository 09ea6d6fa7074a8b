"""Content hashes of weights and settings: the provenance of every number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn


def digest_module(module: nn.Module) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of the state dict; independent of order and device."""
    return digest_state(module.state_dict())


def digest_state(state: Mapping[str, Tensor]) -> str:
    """That of a state dict."""
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        sha.update(tensor_bytes(tensor))
    return sha.hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 (hex) of plain data (numbers, strings, lists, mappings) in canonical JSON; the order of keys is free.

    Raises TypeError for anything that JSON has no form for.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """The elements in row-major order as bytes (bfloat16 has them too)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def seed_of(*place: object) -> int:
    """Seed of one place in a run: a hash of all that names it, so that no two streams have anything in common."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, place)).encode()).digest()[:7], "big")


def networks(component: object, within: type[nn.Module] | None = None) -> Iterator[nn.Module]:
    """Modules with weights that are reachable from a component, each once; those inside a module if they are `within`.

    Reached are attributes (the private ones of settings), what modules hold without registering it, lists, mappings.
    """
    yield from _reached(component, within, set())


def _reached(value: object, within: type[nn.Module] | None, seen: set[int]) -> Iterator[nn.Module]:
    if id(value) in seen or isinstance(value, Tensor | str | bytes | type):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        if value.state_dict():
            yield value
        yield from (m for m in value.modules() if within is not None and m is not value and isinstance(m, within))
        inner: list[object] = [v for k, v in vars(value).items() if k not in ("_parameters", "_buffers", "_modules")]
    elif isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    elif isinstance(value, BaseModel):
        inner = list((value.__pydantic_private__ or {}).values())
    else:
        inner = list(getattr(value, "__dict__", {}).values())
    for item in inner:
        yield from _reached(item, within, seen)
