"""`train:` section -> algorithm -> loop -> weights in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch._functorch import config as functorch

from softdimo.build import PRODUCT, Components, fill, learns_from_tokens, locate, needs_weights
from softdimo.engine import fit
from softdimo.engine.algorithm import Algorithm, Distillation, Entry
from softdimo.engine.ema import EMA
from softdimo.engine.loop import Loop
from softdimo.engine.mixed import lighten, lightens
from softdimo.engine.player import Player
from softdimo.engine.recompute import recompute
from softdimo.engine.rng import seed_all
from softdimo.engine.sharding import shard, whole
from softdimo.errors import DataError, RecipeError, WeightsError
from softdimo.files import load_strict, read_weights, save_weights
from softdimo.inputs.cursor import Conditions
from softdimo.kinds import Cursor, Data, Features, Teacher, Term, Tokenizer
from softdimo.recipe.model import Train
from softdimo.spec import Spec

Sampled = Callable[[int, Algorithm], None]
"""Called with the number of finished iterations and the algorithm, every `sample_every` iterations."""


@dataclass
class Training:
    """One training run: what its parts have in common."""

    parts: Components
    fabric: Fabric
    folder: Path
    recipe_hash: str
    title: str
    tensorboard: bool = False

    @property
    def settings(self) -> Train:
        """The recipe's `train:` section."""
        if self.parts.recipe.train is None:
            raise RecipeError("the recipe has no `train:` section")
        return self.parts.recipe.train

    def run(self, resume: bool, on_sample: Sampled | None) -> Path:
        """Train and write the product; returns its path."""
        settings, seed = self.settings, self.parts.recipe.seed
        rng = torch.Generator(self.fabric.device).manual_seed(seed * 1_000_003 + self.fabric.global_rank)
        algorithm, stream = self.algorithm(rng), self.stream()
        seed_all(seed + self.fabric.global_rank)  # last: other recipes may have been trained on the way here
        loop = Loop(
            algorithm=algorithm,
            stream=stream,
            folder=self.folder,
            fabric=self.fabric,
            generator=rng,
            recipe_hash=self.recipe_hash,
            title=self.title,
            iterations=settings.iterations,
            batch_size=settings.batch_size * self.fabric.world_size,
            log_every=settings.log_every,
            sample_every=settings.sample_every,
            checkpoint_minutes=settings.checkpoint_minutes,
            keep=settings.keep_checkpoints,
            tensorboard=self.tensorboard,
            on_sample=(lambda done: on_sample(done, algorithm)) if on_sample else None,
        )
        loop.run(resume)
        return self._export(algorithm)

    def stream(self) -> Cursor:
        """This rank's batches of the training split."""
        return self._data().stream(
            self.settings.batch_size, self.parts.recipe.seed, self.fabric.global_rank, self.fabric.world_size
        )

    def _data(self) -> Data:
        """Images for a tokenizer or features, which read no prompts; tokens or conditions alone for the others."""
        parts, network = self.parts, self.settings.network
        if learns_from_tokens(self.settings):
            return parts.tokenized
        if network == "student":
            return Conditions(parts.data) if parts.data.has_images else parts.data
        if not parts.data.has_images:
            raise DataError(f"training a {network} needs images, and the data `{parts.recipe.data.use}` has none")
        return parts.given

    def _player(self, name: str, module: nn.Module) -> Player:
        return Player(name, module, self.settings.player, self.settings.iterations, self.fabric)

    def _compile(self, net: nn.Module) -> None:
        """torch.compile, layer by layer where a teacher names them (short compile times, one graph for all of them)."""
        if self.parts.recipe.hardware.compile:
            functorch.donated_buffer = False  # gradients at the logits are taken with `retain_graph`
            for layer in (net.layers() if isinstance(net, Teacher) else ()) or [net]:
                layer.compile()

    def _recompute(self, net: nn.Module) -> None:
        """Activation checkpointing."""
        if self.parts.recipe.hardware.activation_checkpointing:
            recompute(net)

    def _ema(self, module: nn.Module) -> EMA:
        return EMA(module, self.settings.ema.half_lives, self.settings.ema.warmup)

    def algorithm(self, rng: torch.Generator) -> Algorithm:
        """What the recipe trains, with its networks and players, before the first iteration."""
        settings, recipe, parts = self.settings, self.parts.recipe, self.parts
        if settings.network == "student":
            return self._distillation(rng)
        spec = {"teacher": recipe.teacher, "tokenizer": recipe.tokenizer, "features": recipe.features}[settings.network]
        if spec is None:
            raise RecipeError(f"train.network is {settings.network}, but the recipe has no section of that name")
        network = parts.fresh(spec)
        if isinstance(network, Teacher):
            needs_weights(recipe.tokenizer, "the tokenizer")
            needs_weights(recipe.text_encoder, "the text encoder")
            network.meet(parts.require_tokenizer())
        parts.load(network, spec)
        self._start(network, spec)
        network.requires_grad_(True)
        self._recompute(network)
        player = self._player(settings.network, network)
        if isinstance(network, Teacher):
            objective = fit.teacher_objective(
                network, recipe.schedule, settings.label_smoothing, settings.label_drop, rng
            )
        elif isinstance(network, Tokenizer):
            objective = fit.tokenizer_objective(network, rng)
        else:
            assert isinstance(network, Features)
            objective = fit.features_objective(network, rng)
        return fit.Fit(player, self._ema(network), objective, self.fabric)

    def _start(self, network: nn.Module, spec: Spec | None) -> Path | None:
        """Load the weights of the earlier run that `train.start.from` names, if it names one; returns their file."""
        start = self.settings.start.from_
        origin = None if start is None else locate(start, self.parts.ensure)
        if origin is not None:
            fill(network, spec, origin)
        return origin

    def _start_critic(self, name: str, critic: nn.Module, run: Path) -> None:
        """Load the weights of the earlier run's critic of that name, if it has one."""
        saved = run / "critics" / f"{name}.safetensors"
        if not saved.is_file():
            return
        try:
            load_strict(critic, read_weights(saved), saved)
        except WeightsError as error:
            told = f"{error}\ngive the term `{name}` the settings that it had there, or set train.start.critics: false"
            raise WeightsError(told) from error

    def _distillation(self, rng: torch.Generator) -> Distillation:
        settings, parts = self.settings, self.parts
        needs_weights(parts.recipe.tokenizer, "the tokenizer")
        needs_weights(parts.recipe.text_encoder, "the text encoder")
        needs_weights(parts.recipe.teacher, "the teacher")
        parts.require_teacher()
        context = parts.context()
        student = context.copy_teacher()
        self._recompute(student)
        for net in (parts.require_teacher(), student):
            self._compile(net)
        origin = self._start(student, parts.recipe.teacher)
        entries = []
        for spec in settings.terms:
            term: Term = spec.build(context)
            parts.require_tokens(spec, term)
            entry = Entry(spec.name, term, spec.weight)
            if term.critic is not None and term.player is not None:
                critic = term.critic.to(self.fabric.device)
                if isinstance(critic, Teacher):
                    self._recompute(critic)
                self._compile(critic)
                if origin is not None and settings.start.critics:
                    self._start_critic(entry.name, critic, origin.parent)
                entry.critic = Player(f"{entry.name}'s critic", critic, term.player, settings.iterations, self.fabric)
            entries.append(entry)
        shard(parts.require_teacher(), self.fabric)  # last: what is in pieces, or rounded, cannot be copied
        if lightens(parts.recipe.hardware):
            lighten(parts.require_teacher())
        return Distillation(
            generator=self._player("generator", student),
            ema=self._ema(student),
            terms=entries,
            init=parts.recipe.init,
            relaxation=settings.relaxation,
            tokenizer=parts.tokenizer,
            rng=rng,
            fabric=self.fabric,
            lead=settings.start.lead,
            dropout=settings.dropout,
        )

    def _export(self, algorithm: Algorithm) -> Path:
        """EMA of the trained network (every half-life), the live weights, and the critics, for warm starts."""
        product = self.folder / PRODUCT
        about = {"recipe": self.recipe_hash, "network": self.settings.network}

        def save(path: Path, weights: Mapping[str, Tensor], network: str = self.settings.network) -> None:
            state = whole(dict(weights), keep=self.fabric.is_global_zero)
            if self.fabric.is_global_zero:
                save_weights(path, state, about | {"network": network})

        if isinstance(algorithm, Distillation):
            for entry in algorithm.terms:
                if entry.critic is not None:
                    save(self.folder / "critics" / f"{entry.name}.safetensors", entry.critic.raw.state_dict(), "critic")
        save(self.folder / "live.safetensors", algorithm.network.state_dict())
        for i, half_life in list(enumerate(self.settings.ema.half_lives))[1:]:
            save(self.folder / f"ema-{half_life:g}.safetensors", algorithm.ema.weights(algorithm.network, i))
        save(product, algorithm.ema.weights(algorithm.network))  # last: it marks the run as finished
        self.fabric.barrier("product")
        return product


def with_weights(parts: Components, network: str, path: Path) -> Components:
    """The same components, the trained network's section pointing at its weights; networks whole, in full precision."""
    recipe = parts.recipe
    if network == "student" and recipe.hardware.strategy != "fsdp2" and not lightens(recipe.hardware):
        return parts
    if network != "student":
        spec = {"teacher": recipe.teacher, "tokenizer": recipe.tokenizer, "features": recipe.features}[network]
        assert spec is not None
        recipe = recipe.model_copy(update={network: spec.model_copy(update={"weights": str(path)})})
    made = Components(recipe, parts.device, parts.ensure, parts.cache)
    made.__dict__ |= {k: v for k, v in parts.__dict__.items() if k in ("given", "data", "encodings")}
    return made
