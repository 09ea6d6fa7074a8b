"""Recipe -> components. Each network is built once, with its weights; the registry is not touched here."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softdimo.engine import products
from softdimo.errors import DataError, PluginError, RecipeError, WeightsError
from softdimo.files import load_strict, read_weights
from softdimo.inputs.cursor import Tokenized
from softdimo.inputs.encodings import Encodings, identity
from softdimo.inputs.prompted import Prompted
from softdimo.kinds import (
    Context,
    Data,
    Discriminator,
    Features,
    ImageShape,
    Teacher,
    Term,
    TextEncoder,
    Tokenizer,
    TokenShape,
)
from softdimo.recipe.model import Recipe, Train
from softdimo.spec import LossSpec, NetworkSpec, RecipeRef, Spec, Weights
from softdimo.weights import download

PRODUCT = "weights.safetensors"
"""The file in a run folder that holds what the run made: the EMA of the trained network."""
NAMES = (PRODUCT, "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "model.safetensors",
         "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # fmt: skip
"""Files that a folder may hold: a run's product, or what folders on the hub have; the first one counts."""
Ensure = Callable[[RecipeRef], Path]
"""Runs another recipe unless that was done before; returns its run folder."""


def unavailable(ref: RecipeRef) -> Path:
    """An `Ensure` for places that must not train."""
    raise WeightsError(f"these weights come from the recipe {ref.recipe}; run it first")


def locate(weights: Weights, ensure: Ensure) -> Path:
    """A local file: given by path (file, run folder, copy of a folder of the hub), on the hub, or made by a recipe."""
    if isinstance(weights, RecipeRef):
        return ensure(weights) / PRODUCT
    if weights.startswith("hf://"):
        return download(weights)
    path = Path(weights).expanduser()
    if path.is_dir():
        path = next((path / name for name in NAMES if (path / name).is_file()), path / PRODUCT)
    if not path.is_file():
        raise WeightsError(f"no weights at {path}; give a safetensors file, a run folder, or hf://owner/repo/file")
    return path


class Components:
    """The components of one recipe, made on demand and kept: equal settings give the same object."""

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device | str = "cpu",
        ensure: Ensure = unavailable,
        cache: Path | None = None,
    ) -> None:
        """`cache` is the folder of what runs share (`runs/cache`), where there is one."""
        self.recipe, self.device, self.ensure, self.cache = recipe, torch.device(device), ensure, cache
        self._made: dict[str, Any] = {}

    @cached_property
    def given(self) -> Data:
        """The data set, as it comes: images, tokens, labels or prompts alone."""
        blank = Context(ImageShape(1, 1, 1), (), self.make, device=self.device)
        data: Data = self.recipe.data.build(blank)
        return data

    @cached_property
    def data(self) -> Data:
        """The data set, its prompts with their encodings."""
        return self._with_text(self.given)

    def _with_text(self, data: Data) -> Data:
        return data if self.encodings is None else Prompted(data, self.encodings)

    @cached_property
    def encodings(self) -> Encodings | None:
        """What the text encoder makes of prompts; it is made itself when the first one is new. None without one."""
        spec = self.recipe.text_encoder
        if spec is None:
            return None

        def named() -> str:
            weights = None if spec.weights is None else locate(spec.weights, self.ensure)
            return identity(spec, weights, self.recipe.seed)

        negative, limit = getattr(spec, "negative", None), self.recipe.hardware.text_cache_gb * 1e9
        return Encodings(lambda: self.make(spec), self.device, named, negative, self.cache, limit)

    @cached_property
    def tokens(self) -> TokenShape | None:
        """Shape of the token sequence, from the tokenizer's settings."""
        spec = self.recipe.tokenizer
        if spec is None:
            return None
        shape: TokenShape = spec.token_shape(self.given.image)  # type: ignore[attr-defined]
        return shape

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer with its weights, which the data has met."""
        if self.recipe.tokenizer is None:
            return None
        tokenizer: Tokenizer = self.make(self.recipe.tokenizer)
        self.given.meet(tokenizer)
        return tokenizer

    @cached_property
    def teacher(self) -> Teacher | None:
        """The frozen teacher with its weights."""
        return None if self.recipe.teacher is None else self.make(self.recipe.teacher)

    @cached_property
    def tokenized(self) -> Data:
        """The data set as tokens; images are encoded once. Tokens come as they are, and so do labels alone."""
        tokenizer = self.require_tokenizer()
        if not self.given.has_images:
            return self.data
        return self._with_text(Tokenized(self.given, tokenizer, self.device))

    def require_tokens(self, spec: LossSpec, term: Term) -> None:
        """Refuse data of conditions alone for a term whose critic looks at real tokens, before anything is trained."""
        if not spec.real or term.critic is None or self.given.has_images:
            return
        batch = self.given.source("train").get(torch.zeros(1, dtype=torch.int64))
        if batch.tokens is None:
            alone = "prompts" if batch.cond.prompts else "class labels"
            raise DataError(
                f"the term `{spec.name}` looks at real tokens, and the data `{self.recipe.data.use}` gives {alone} "
                "alone; use data with images, or a token cache: `softdimo tokenize`"
            )

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer, or an error that says to add one."""
        if self.tokenizer is None:
            raise RecipeError("this needs a tokenizer: add a `tokenizer:` section to the recipe")
        return self.tokenizer

    def require_teacher(self) -> Teacher:
        """The teacher, or an error that says to add one."""
        if self.teacher is None:
            raise RecipeError("this needs a teacher: add a `teacher:` section to the recipe")
        return self.teacher

    def context(self, bare: bool = False) -> Context:
        """What components may know; `bare` leaves the networks out (tokenizer and teacher are built so)."""
        return Context(
            image=self.given.image,
            classes=self.given.classes,
            make=self.make,
            tokens=self.tokens,
            teacher=None if bare else self.teacher,
            tokenizer=None if bare else self.tokenizer,
            init=self.recipe.init,
            schedule=self.recipe.schedule,
            device=self.device,
        )

    def make(self, spec: Spec) -> Any:
        """Build a component, once; a network gets its weights, goes to the device, and is frozen in evaluation mode.

        Discriminators alone are made anew each time: every term trains its own.
        """
        key = f"{type(spec).__module__}.{type(spec).__qualname__} {spec.model_dump_json()}"
        if key not in self._made:
            built = self.fresh(spec)
            if isinstance(built, nn.Module):
                self.load(built, spec)
                if isinstance(built, Teacher | Tokenizer | TextEncoder | Features):
                    built.requires_grad_(False).eval()
            if isinstance(built, Discriminator):
                return built
            self._made[key] = built
        return self._made[key]

    def fresh(self, spec: Spec) -> Any:
        """Build a component with weights drawn from the recipe's seed, without loading any."""
        bare = spec in (self.recipe.tokenizer, self.recipe.text_encoder, self.recipe.teacher, self.recipe.features)
        seed = int.from_bytes(
            hashlib.sha256(f"{self.recipe.seed} {spec.model_dump_json()}".encode()).digest()[:6], "big"
        )
        context = self.context(bare)  # before the seed: what it builds must not draw from this component's stream
        with torch.random.fork_rng(devices=[]), self._on_device():
            torch.default_generator.manual_seed(seed)  # the CPU's alone, where everything is built
            built = spec.build(context)
        if not isinstance(built, nn.Module):
            return built
        if self.device.type == "cpu" and products.worthwhile():
            products.quicken(built)
        return built.to(self.device)

    def load(self, module: nn.Module, spec: Spec) -> None:
        """Load a network's weights, strictly, if its settings name any."""
        weights = spec.weights if isinstance(spec, NetworkSpec) else None
        if weights is None or self.device.type == "meta":
            return
        fill(module, spec, locate(weights, self.ensure))

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Build on `meta` without allocating; elsewhere build on the CPU, so that seeds mean the same everywhere."""
        return torch.device("meta") if self.device.type == "meta" else contextlib.nullcontext()


def fill(module: nn.Module, spec: Spec | None, path: Path) -> None:
    """Load a file of weights, strictly, as the network's settings read it: some know public files besides our own."""
    loader = getattr(spec, "load_weights", None)
    if loader is not None:
        loader(module, path)
    else:
        load_strict(module, read_weights(path), path)


def learns_from_tokens(train: Train) -> bool:
    """Whether a training looks at real tokens: that of a teacher does, a student's where one of its terms does."""
    if train.network == "student":
        return any(term.real for term in train.terms)
    return train.network == "teacher"


def assemble(recipe: Recipe, device: torch.device | str = "cpu", ensure: Ensure = unavailable) -> Components:
    """The components of a recipe."""
    return Components(recipe, device, ensure)


def needs_weights(spec: Spec | None, what: str) -> None:
    """Refuse a network that should be trained already but names no weights."""
    if isinstance(spec, NetworkSpec) and not spec.ready():
        raise PluginError(
            f"{what} `{spec.use}` has no `weights:`; name a file, a run folder, or the recipe that makes them"
        )
