"""One parity file: its JSON, its tensors, and what a check found by comparing with them.

`<name>_tiny.json` describes the weights `<name>_tiny.safetensors` and the recorded inputs and outputs
`<name>_io.safetensors`; any other JSON describes the file of its own name. Under `io` it lists the tensors one by one,
under `keys` what their names begin with. Every recorded tensor has to be read by the check: one that nobody looked at
is a failure, so that an output cannot be forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ABSOLUTE, GUIDED, RELATIVE = 1e-5, 3e-5, 1e-5
"""Tolerances: logits, losses and pixels; guided logits; gradients, relative to the largest recorded one."""
TINY = "_tiny"


@dataclass(frozen=True)
class Gap:
    """Largest error of one output, and how much it may be."""

    output: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether it is within the tolerance; NaN is not."""
        return self.error <= self.tolerance


@dataclass
class Case:
    """A recording, and the gaps found so far."""

    path: Path
    """The JSON."""
    info: dict[str, Any]
    tensors: dict[str, Tensor]
    gaps: list[Gap] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read the JSON at `path`, and its tensors if it has any. Half precision becomes float32."""
        info = json.loads(path.read_text(encoding="utf-8"))
        stem = path.stem
        file = path.with_name(
            f"{stem.removesuffix(TINY)}_io.safetensors" if stem.endswith(TINY) else f"{stem}.safetensors"
        )
        if not isinstance(info.get("io"), dict) and "keys" not in info:
            return cls(path, info, {})
        tensors = {
            k: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for k, t in load_file(file).items()
        }
        listed = set(info.get("io", tensors))
        if listed != set(tensors):
            raise ValueError(f"{file.name} and {path.name} name other tensors: {sorted(listed ^ set(tensors))}")
        return cls(path, info, tensors, unread=set(tensors))

    @property
    def config(self) -> dict[str, Any]:
        """Sizes and switches of a model."""
        config: dict[str, Any] = self.info["config"]
        return config

    @property
    def weights(self) -> Path:
        """Of the model itself (`_tiny`), or of the model that a trace was made of."""
        return self.path.with_suffix(".safetensors") if self.path.stem.endswith(TINY) else self.origin.weights

    @property
    def origin(self) -> Case:
        """The model that this trace was made of."""
        return Case.load(self.path.with_name(f"{self.info['trace_of']}{TINY}.json"))

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        self.unread.discard(name)
        return self.tensors[name]

    def near(
        self, name: str, value: Tensor, tolerance: float = ABSOLUTE, relative: bool = False, expected: Any = None
    ) -> None:
        """Record the largest difference of `value` from the recorded `name`, over the largest entry if `relative`."""
        expected = self[name] if expected is None else torch.as_tensor(expected)
        if value.shape != expected.shape:
            raise ValueError(f"{name}: shape {list(value.shape)}, but {list(expected.shape)} is recorded")
        error = (value.detach().double() - expected.double()).abs().max().item()
        self.gaps.append(Gap(name, error / (expected.double().abs().max().item() if relative else 1.0), tolerance))

    def equal(self, name: str, value: Any, expected: Any = None) -> None:
        """Ids, masks, counts: the error is the number of entries that differ (all of them, if the shapes do)."""
        a, b = torch.as_tensor(value), torch.as_tensor(self[name] if expected is None else expected)
        same_shape = a.shape == b.shape
        self.gaps.append(Gap(name, float((a != b).sum()) if same_shape else float(max(a.numel(), b.numel(), 1)), 0.0))


Check = Callable[[Case], None]
"""Computes what was recorded and compares with it. A setting that it does not know raises ValueError."""
