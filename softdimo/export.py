"""A run's generator as a folder that loads anywhere: weights, tokenizer, resolved recipe, model card."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import yaml
from pydantic import ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from softdimo import __version__
from softdimo.build import PRODUCT, Components
from softdimo.errors import CheckpointError, PluginError, RecipeError, WeightsError
from softdimo.files import load_strict, read_weights, save_weights, write_text, writing
from softdimo.generator import Generator, place
from softdimo.inputs.encodings import Encodings
from softdimo.kinds import Data, ImageShape, Sampler, Source, Teacher, TextEncoder, Tokenizer
from softdimo.math.digest import digest_module
from softdimo.math.init import Init
from softdimo.math.schedules import Schedule
from softdimo.recipe import Recipe
from softdimo.runs.folder import RECIPE
from softdimo.runs.lineage import cache_folder, cached, open_run
from softdimo.spec import NetworkSpec, Settings, Spec, component

FORMAT = "1"
TOKENIZER, TEXT, CARD = "tokenizer.safetensors", "text_encoder.safetensors", "card.md"
BESIDE = "text_encoder."
"""Before the names of the files that a text encoder's settings name, in an export: the setting's name follows."""
_KEYS = ("recipe", "classes", "image", "tokenizer", "digest")
NETWORKS = ("student", "teacher")
"""What can be exported, each as `<name>.safetensors`."""


def export(run: Path, out: Path) -> Path:
    """Write the generator that `run` trained (EMA weights) into the folder `out`, whole or not at all; returns it.

    `softdimo.load(out)` needs none of the original files: a text encoder comes along, with its weights and the files
    that its settings name (what they name on the hub is fetched from there). An earlier export at `out` is replaced.

    Raises CheckpointError where `run` trained no student or teacher to the end, or `out` holds something else;
    WeightsError where weights that it was made from are gone.
    """
    from softdimo.report.card import card

    run, out = Path(run), Path(out)
    if out.exists() and not is_export(out) and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is no export; give another --out")
    parts, kind = _of_run(run, torch.device("cpu"))
    net, tokenizer = _trained(parts, run), parts.require_tokenizer()
    text = portable(parts.recipe)
    about = {
        "softdimo.format": FORMAT,
        "softdimo.version": __version__,
        "softdimo.network": kind,
        "softdimo.recipe": hashlib.sha256(text.encode()).hexdigest(),
        "softdimo.classes": json.dumps(parts.data.classes),
        "softdimo.image": json.dumps(parts.data.image),
        "softdimo.tokenizer": digest_module(tokenizer),
    }
    encoder = None if parts.encodings is None else parts.encodings.encoder
    if encoder is not None:
        about["softdimo.text_encoder"] = digest_module(encoder)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        new, aside = (Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.")) for _ in range(2))
    try:
        save_weights(new / TOKENIZER, tokenizer.state_dict(), {"softdimo.digest": about["softdimo.tokenizer"]})
        if encoder is not None:
            save_weights(new / TEXT, encoder.state_dict(), {"softdimo.digest": about["softdimo.text_encoder"]})
            _copy(_beside(parts.recipe), new)
        save_weights(new / f"{kind}.safetensors", net.state_dict(), about | {"softdimo.digest": digest_module(net)})
        write_text(new / RECIPE, text)
        write_text(new / CARD, card(run, kind))
        new.chmod(0o755)
        with writing(out):
            _swap(new, out, aside)
    finally:
        for folder in (new, aside):
            shutil.rmtree(folder, ignore_errors=True)
    return out


def _swap(new: Path, out: Path, aside: Path) -> None:
    """Put `new` in the place of `out`; when that fails, what was there stays."""
    before = out.exists()
    if before:
        os.replace(out, aside)
    try:
        os.replace(new, out)
    except OSError:
        if before:
            os.replace(aside, out)
        raise


def load(where: str | os.PathLike[str], device: str | torch.device = "auto") -> Generator:
    """The generator of an exported folder, or of a finished run folder, ready to draw on `device`.

    Raises WeightsError where files are missing, truncated, changed or do not belong together; PluginError where a
    component that the model needs is not installed.
    """
    path, target = Path(where), place(device)
    if is_export(path):
        return open_export(path, target)[1]
    if not (path / RECIPE).is_file():
        raise WeightsError(f"{path} is neither an exported model nor a run folder")
    parts, kind = _of_run(path, target)
    return _generator(parts, _trained(parts, path), parts.require_tokenizer(), kind)


def portable(recipe: Recipe) -> str:
    """The resolved recipe as YAML with every path of this machine shortened to its name."""
    from softdimo.recipe import dump

    def shorten(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shorten(item) for key, item in value.items()}
        if isinstance(value, list):
            return [shorten(item) for item in value]
        return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value

    plain = shorten(yaml.safe_load(dump(recipe)))
    plain["tokenizer"]["weights"] = TOKENIZER
    if recipe.text_encoder is not None:
        plain["text_encoder"] |= {"weights": TEXT} | {name: f"{BESIDE}{name}" for name in _beside(recipe)}
    head = "# The resolved recipe of this model; files of the machine that made it are named without their folders.\n"
    return head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def _beside(recipe: Recipe) -> dict[str, Path]:
    """Files and folders that the text encoder's settings name by absolute paths, by the settings' names."""
    paths = {
        name: value for name, value in recipe.text_encoder or () if isinstance(value, str) and os.path.isabs(value)
    }
    return {name: Path(value) for name, value in paths.items() if name != "weights" and os.path.exists(value)}


def _copy(files: dict[str, Path], out: Path) -> None:
    with writing(out):
        for name, path in files.items():
            target = out / f"{BESIDE}{name}"
            shutil.copytree(path, target) if path.is_dir() else shutil.copyfile(path, target)


class _Model(Settings):
    """The sections of a recipe that a generator needs; the rest is for people."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    title: str
    seed: int = 0
    schedule: Schedule = "arccos"
    init: Init = Init()
    tokenizer: Annotated[NetworkSpec, component("tokenizer")]
    text_encoder: Annotated[NetworkSpec, component("text_encoder")] | None = None
    teacher: Annotated[NetworkSpec, component("teacher")]


class _Sampled(Settings):
    """How an exported teacher draws."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    sampler: Annotated[Spec, component("sampler")] | None = None


class _Known(Data):
    """What an export knows of its data set: image shape and class names."""

    def __init__(self, image: ImageShape, classes: tuple[str, ...]) -> None:
        self.image, self.classes = image, classes

    def source(self, split: str) -> Source:
        raise CheckpointError("an exported model comes without its data set")


def is_export(path: Path) -> bool:
    """Whether a folder is an exported model."""
    return (path / TOKENIZER).is_file() and any((path / f"{kind}.safetensors").is_file() for kind in NETWORKS)


def _of_run(run: Path, device: torch.device) -> tuple[Components, str]:
    """Components of a finished run, and what it trained."""
    loaded = open_run(run)
    train = loaded.recipe.train
    if train is None or train.network not in NETWORKS:
        made = f"a {train.network}" if train is not None else "nothing"
        raise CheckpointError(f"{run} trained {made}; only a student or a teacher draws images")
    if not (run / PRODUCT).is_file():
        raise CheckpointError(f"{run} is not finished (it has no {PRODUCT}); go on with `softdimo run ... --resume`")
    ensure = cached(run.resolve(), loaded.smoke)
    return Components(loaded.recipe, device, ensure, cache_folder(run)), train.network


def _trained(parts: Components, run: Path) -> Teacher:
    """The network that the run trained, with its EMA weights, frozen."""
    spec = parts.recipe.teacher
    if spec is None:
        raise RecipeError(f"{run}: the recipe has no `teacher:` section")
    return cast(Teacher, _fill(parts.fresh(spec), run / PRODUCT))


def _fill(net: nn.Module, path: Path) -> nn.Module:
    load_strict(net, read_weights(path), path)
    return net.requires_grad_(False).eval()


def _generator(parts: Components, net: Teacher, tokenizer: Tokenizer, kind: str, spec: Spec | None = None) -> Generator:
    train = parts.recipe.train
    spec = spec or (train.sampler if train is not None else None)
    sampler = cast(Sampler, spec.build(parts.context(bare=True))) if kind == "teacher" and spec is not None else None
    return Generator(
        net,
        tokenizer,
        parts.recipe.init,
        parts.given.classes,
        parts.given.image,
        parts.device,
        sampler,
        parts.encodings,
    )


def open_export(path: Path, device: torch.device) -> tuple[Components, Generator]:
    """The generator of an exported folder, and components around it: its networks are those of the folder.

    Raises as `load` does.
    """
    kind = next(k for k in NETWORKS if (path / f"{k}.safetensors").is_file())
    file = path / f"{kind}.safetensors"
    about = _metadata(file)
    text = (path / RECIPE).read_text(encoding="utf-8") if (path / RECIPE).is_file() else ""
    if hashlib.sha256(text.encode()).hexdigest() != about["softdimo.recipe"]:
        raise WeightsError(f"{path / RECIPE} is missing or is not the one that {file.name} was exported with")
    plain = yaml.safe_load(text)
    try:
        model = _Model.model_validate(plain)
        spec = _Sampled.model_validate(plain.get("train") or {}).sampler if kind == "teacher" else None
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        raise PluginError(f"{path / RECIPE} needs components that are not here:\n  " + "\n  ".join(faults)) from error
    known = {name: getattr(model, name) for name in _Model.model_fields}
    known["text_encoder"] = _found(model.text_encoder, path)
    parts = Components(Recipe.model_construct(**known, train=None, features=None), device)
    image = ImageShape(*json.loads(about["softdimo.image"]))
    parts.__dict__["given"] = _Known(image, tuple(json.loads(about["softdimo.classes"])))
    tokenizer = cast(Tokenizer, _fill(parts.fresh(model.tokenizer), path / TOKENIZER))
    _check(tokenizer, about["softdimo.tokenizer"], path / TOKENIZER)
    net = cast(Teacher, _fill(parts.fresh(model.teacher), file))
    _check(net, about["softdimo.digest"], file)
    parts.__dict__.update(tokenizer=tokenizer, teacher=net)
    if parts.recipe.text_encoder is not None:
        encoder = cast(TextEncoder, _fill(parts.fresh(parts.recipe.text_encoder), path / TEXT))
        _check(encoder, about.get("softdimo.text_encoder", ""), path / TEXT)
        parts.__dict__["encodings"] = Encodings(lambda: encoder, device)
    return parts, _generator(parts, net, tokenizer, kind, spec)


def _found(spec: NetworkSpec | None, path: Path) -> NetworkSpec | None:
    """A text encoder's settings with the paths of the files that came along."""
    here = {name: value for name, value in spec or () if value == f"{BESIDE}{name}"}
    missing = [value for value in here.values() if not (path / value).exists()]
    if missing:
        raise WeightsError(f"{path} has no {', '.join(missing)}; export it again")
    return spec and spec.model_copy(update={name: str(path / value) for name, value in here.items()})


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, "pt") as opened:
            about = dict(opened.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{file} is not a readable safetensors file: {error}") from error
    if about.get("softdimo.format") != FORMAT:
        raise WeightsError(f"{file} has format {about.get('softdimo.format')}, not {FORMAT}; export it again")
    if lacking := [key for key in _KEYS if f"softdimo.{key}" not in about]:
        raise WeightsError(f"{file} does not say its {', '.join(lacking)}; export it again")
    return about


def _check(net: nn.Module, digest: str, file: Path) -> None:
    if digest_module(net) != digest:
        raise WeightsError(f"{file} was changed after the export, or belongs to another model; export it again")
