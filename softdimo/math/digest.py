"""Content hashes of weights and settings: the provenance of every number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
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
