"""What a text encoder makes of prompts: from memory, from the disk, or computed, once for each prompt."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from softdimo import __version__
from softdimo.errors import PluginError
from softdimo.files import sha256
from softdimo.inputs.store import Row, Store
from softdimo.kinds import NULL, Cond, TextEncoder
from softdimo.math.digest import digest_json
from softdimo.spec import NetworkSpec

AT_ONCE = 64
"""Prompts that are encoded at a time."""
MEMORY = 64 * 2**20
"""Bytes of encodings that stay in memory, those used last."""
FOLDER = "encodings"
"""Below `runs/cache`: a folder for each encoder, named by its `identity`."""


class Encodings:
    """Prompts -> named tensors [B ...] on `device`, in float32 where they are floating point.

    The encoder is made when a prompt needs it that has not been encoded before: a later run may do without.
    """

    def __init__(
        self,
        encoder: Callable[[], TextEncoder],
        device: torch.device,
        identity: Callable[[], str] = lambda: "",
        negative: str | None = None,
        cache: Path | None = None,
        limit: float = 0.0,
    ) -> None:
        """`identity` tells encoders apart; `cache` is the folder of all of them, with room for `limit` bytes each.

        `negative` is the encoder's, where it is known before the encoder is made.
        """
        self.device, self._encoder, self._identity, self._negative = device, encoder, identity, negative
        self._cache, self._limit = cache, limit
        self._memory: OrderedDict[str, Row] = OrderedDict()
        self._held = 0

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text encoder."""
        return self._encoder()

    @cached_property
    def identity(self) -> str:
        """Tells this encoder from others: a hash of its settings and weights."""
        return self._identity()

    @property
    def negative(self) -> str:
        """The unconditional prompt."""
        return self.encoder.negative if self._negative is None else self._negative

    @cached_property
    def null(self) -> Mapping[str, Tensor]:
        """Encodings of the unconditional prompt, [1 ...]."""
        return self([self.negative])

    def ready(self, cond: Cond) -> Cond:
        """Conditions with their prompts' encodings, and `null.<name>`; those that need none, or have them, as they are.

        PluginError where the encoder gives other tensors than one row a prompt.
        """
        if not cond.prompts or any(name.startswith(NULL) for name in cond.tensors):
            return cond
        null = {f"{NULL}{name}": t.expand(len(cond), *t.shape[1:]) for name, t in self.null.items()}
        return replace(cond, tensors={**cond.tensors, **self(cond.prompts), **null})

    def to(self, device: torch.device) -> Encodings:
        """The same encodings on another device; those in memory are made or found again."""
        args = (self._identity, self._negative, self._cache, self._limit)
        return Encodings(lambda: self.encoder.to(device), device, *args)

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Encodings of one or more prompts; each is computed once, however often it stands there.

        Networks can be trained with them, wherever they were made: they are none of `inference_mode`.
        """
        if self.device.type == "meta":
            return {name: _wide(t) for name, t in self._computed(prompts).items()}
        rows = self._rows(list(dict.fromkeys(prompts)))
        names = rows[prompts[0]]
        return {name: _wide(torch.stack([rows[p][name] for p in prompts]).to(self.device)) for name in names}

    def _rows(self, prompts: Sequence[str]) -> dict[str, Row]:
        """One row a prompt, on the CPU, as it is kept."""
        rows = {p: self._memory[p] for p in prompts if p in self._memory}
        missing = [p for p in prompts if p not in rows]
        if missing and self._store is not None:
            rows |= self._store.get(missing)
            missing = [p for p in missing if p not in rows]
        for first in range(0, len(missing), AT_ONCE):
            some = missing[first : first + AT_ONCE]
            made = {name: t.cpu() for name, t in self._computed(some).items()}
            new = {p: {name: t[i].clone() for name, t in made.items()} for i, p in enumerate(some)}
            if self._store is not None:
                self._store.put(new)
            rows |= new
        for prompt in prompts:
            self._remember(prompt, rows[prompt])
        return rows

    def _computed(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """What the encoder gives, checked."""
        made = self.encoder.encode(prompts)
        what = {name: list(t.shape) for name, t in made.items() if t.ndim < 1 or len(t) != len(prompts)}
        if what or not made:
            raise PluginError(
                f"the text encoder {type(self.encoder).__name__} gives {what or 'nothing'} for {len(prompts)} prompts; "
                "give tensors with one row each"
            )
        return made

    @cached_property
    def _store(self) -> Store | None:
        if self._cache is None or self._limit <= 0:
            return None
        return Store(self._cache / FOLDER / self.identity[:16], self._limit)

    def _remember(self, prompt: str, row: Row) -> None:
        if prompt not in self._memory:
            self._held += _bytes(row)
        self._memory[prompt] = row
        self._memory.move_to_end(prompt)
        while self._held > MEMORY and len(self._memory) > 1:
            self._held -= _bytes(self._memory.popitem(last=False)[1])


def _bytes(row: Row) -> int:
    return sum(t.nbytes for t in row.values())


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.is_floating_point() else t


def identity(spec: NetworkSpec, weights: Path | None, seed: int) -> str:
    """Hash of an encoder's settings, of its source file, and of its file of weights; of the recipe's seed without one.

    The unconditional prompt does not count: it is a prompt like others.
    """
    cls = type(spec)
    try:
        source = sha256(Path(inspect.getfile(cls)))
    except (TypeError, OSError):
        source = ""
    return digest_json(
        {
            "class": f"{cls.__module__}.{cls.__qualname__}",
            "settings": spec.model_dump(mode="json", exclude={"use", "weights", "negative"}),
            "content": spec.content(),
            "weights": sha256(weights) if weights is not None else f"seed {seed} of torch {torch.__version__}",
            "source": source,
            "softdimo": __version__,
        }
    )
