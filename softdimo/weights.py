"""Weights that others published: read without running code, and fitted to our networks key by key."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from softdimo.errors import WeightsError
from softdimo.files import DIGEST, load_strict, read_weights

Shapes = Mapping[str, tuple[int, ...]]
"""Key -> shape of a state dict."""
WRAPPERS = ("module.", "_orig_mod.")
"""What data parallelism and compilation put before every key."""
PLACEHOLDERS = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
"""Classes that old Lightning checkpoints name beside their weights; each is read as an empty class of ours."""


class _Placeholder:
    """Stands for a class of a library that nobody needs."""


@dataclass(frozen=True)
class Published:
    """How the public files of one model are written, and what tells its sizes."""

    model: str
    """Its name, for messages."""
    sizes: Callable[[Shapes], dict[str, int]]
    """The settings that the shapes show, by the names that a recipe gives them; KeyError where a key is missing."""
    under: str = ""
    """The entry of the file that holds the weights; a file that holds nothing but weights is taken as it is."""
    renames: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement), public key to ours; they leave our own keys alone."""
    beside: tuple[str, ...] = ()
    """Prefixes of what the file holds beside this network: networks of its training, buffers that can be computed."""
    tied: tuple[tuple[str, str], ...] = ()
    """(key, other key) that are one tensor: equal where the file has both, and the first may be missing."""

    def rename(self, key: str) -> str:
        """Our name of a public key, without what wraps it."""
        while key.startswith(WRAPPERS):
            key = key[key.index(".") + 1 :]
        for pattern, ours in self.renames:
            key = re.sub(pattern, ours, key)
        return key

    def state(self, content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
        """The network's weights under our names, from the content of the file. WeightsError if it holds none."""
        inner = content.get(self.under, content) if self.under else content
        if not isinstance(inner, Mapping) or not inner or not all(isinstance(v, Tensor) for v in inner.values()):
            where = f"under `{self.under}`, nor " if self.under else ""
            entries = ", ".join(map(str, list(content)[:8])) or "nothing"
            raise WeightsError(f"{path} holds no weights {where}at its top; its entries: {entries}")
        state: dict[str, Tensor] = {}
        for key, tensor in inner.items():
            ours = self.rename(str(key))
            if ours.startswith(self.beside):
                continue
            if ours in state:
                raise WeightsError(f"{path} holds two tensors for `{ours}`")
            state[ours] = tensor
        return state


def load_published(module: nn.Module, path: Path, published: Published) -> None:
    """Load every weight of `module` from a public file, or from one of our own.

    Raises WeightsError for an unreadable file, for another model, for other sizes (it says which setting to change),
    for keys that are missing or unexpected, and for tied weights that differ.
    """
    state = published.state(read_checkpoint(path), path)
    shapes = {key: tuple(t.shape) for key, t in state.items()}
    try:
        theirs = published.sizes(shapes)
    except (KeyError, IndexError, ValueError) as error:
        keys = ", ".join(list(state)[:4]) or "none"
        raise WeightsError(
            f"{path} holds another model, not {published.model}: it has no {error}; its keys: {keys}, ..."
        ) from error
    ours = published.sizes({key: tuple(t.shape) for key, t in module.state_dict().items()})
    other = [name for name in ours if ours[name] != theirs[name]]
    if other:
        here, there = (", ".join(f"{name}: {s[name]}" for name in other) for s in (ours, theirs))
        raise WeightsError(f"{path} is {published.model} with {there}; the recipe says {here}. Change it to {there}")
    for a, b in published.tied:
        if b in state and not torch.equal(state.setdefault(a, state[b]), state[b]):
            raise WeightsError(f"{path}: `{a}` and `{b}` differ, but {published.model} has them as one tensor")
    load_strict(module, state, path)


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """The content of a safetensors file or of one of `torch.save` (.pth, .pt, .ckpt, .bin), on the CPU.

    Only plain values and tensors are read, by `torch.load(weights_only=True)`: nothing in the file can run code.
    """
    if path.suffix == ".safetensors":
        return read_weights(path)
    if not path.is_file():
        raise WeightsError(f"no weights at {path}")
    allowed: list[Any] = [(_Placeholder, name) for name in PLACEHOLDERS]
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(allowed):
            content = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise WeightsError(f"{path} is not a file of weights, or it is damaged; fetch it again") from error
        raise WeightsError(
            f"{path} holds code ({found[1]}), which is never run; give a file of plain weights (a state dict)"
        ) from error
    except Exception as error:  # damaged files raise nearly everything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise WeightsError(f"{path} is damaged or not a file of weights ({reason}); fetch it again") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not weights by name (a state dict)")
    return content


def download(address: str) -> Path:
    """The local copy of `hf://owner/repo/path/to/file`. WeightsError where it cannot be had."""
    parts = address.removeprefix("hf://").split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise WeightsError(f"{address}: write hf://owner/repo/path/to/file.safetensors")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(f"{parts[0]}/{parts[1]}", parts[2]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"could not download {address}: {reason}") from error


def count(shapes: Shapes, pattern: str) -> int:
    """How many numbers the group of `pattern` takes among the keys: the depth of a stack. KeyError if there is none."""
    found = {match[1] for key in shapes if (match := re.match(pattern, key))}
    if not found:
        raise KeyError(pattern)
    return len(found)


def made_here(path: Path) -> bool:
    """Whether softdimo wrote this file, so that its recipe, not a publication, says what the network is."""
    if path.suffix != ".safetensors":
        return False
    with safe_open(path, "pt") as file:
        return DIGEST in (file.metadata() or {})
