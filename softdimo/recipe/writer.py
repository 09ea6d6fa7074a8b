"""Writing a resolved recipe, and naming its content by a hash."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import yaml

from softdimo import registry
from softdimo.recipe.loader import load_ref
from softdimo.recipe.model import Recipe
from softdimo.recipe.nodes import Scalars, dotted
from softdimo.recipe.shrink import walk
from softdimo.spec import RecipeRef, Settings, Spec


class _Dumper(yaml.SafeDumper):
    """Quotes text that would read as something else."""


Scalars.install(_Dumper)
_Dumper.add_multi_representer(
    str,  # line ends other than \n would be folded where they are not escaped
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", str(text), style='"' if set(text) & set("\r\x85\u2028\u2029\ufeff") else None
    ),
)
_Dumper.add_representer(str, _Dumper.yaml_multi_representers[str])
_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=not any(isinstance(item, dict | list) for item in items)
    ),
)

CADENCE = ("log_every", "sample_every", "checkpoint_minutes", "keep_checkpoints")
"""Keys of `train` that change what is written down, not what is computed."""


def dump(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that loads back to an equal recipe."""
    plain = recipe.model_dump(mode="json", by_alias=True)
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def content_hash(recipe: Recipe, smoke: bool = False) -> str:
    """SHA-256 (hex) of what the results depend on.

    The title, the hardware except its precision, and the cadence of the output do not count. A recipe that is referred
    to counts by its own content hash, not by its path; `smoke` says whether its tiny version is meant. Files that the
    user can change count (`Spec.content`): DataError where they cannot be read.
    """
    return _hash(recipe, smoke, {})


def _hash(recipe: Recipe, smoke: bool, done: dict[str, str]) -> str:
    plain: dict[str, Any] = recipe.model_dump(mode="json", by_alias=True)
    plain.pop("title")
    plain["hardware"] = {"precision": plain["hardware"]["precision"]}
    for key in CADENCE if plain["train"] else ():
        plain["train"].pop(key)
    read = {dotted(path): spec.content() for path, spec in walk(recipe) if isinstance(spec, Spec)}
    if found := {path: content for path, content in read.items() if content}:
        plain["content"] = found
    text = json.dumps(_inline(plain, smoke, done), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def settings_hash(settings: Settings, smoke: bool = False) -> str:
    """SHA-256 (hex) of settings by themselves; other recipes that they refer to count by their content."""
    plain = _inline(settings.model_dump(mode="json", by_alias=True), smoke, {})
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def distributions(recipe: Recipe) -> list[str]:
    """Names of the installed distributions that the recipe's components come from, sorted."""
    classes = {type(settings) for _, settings in walk(recipe) if isinstance(settings, Spec)}
    return sorted(
        {
            registry.distribution(entry)
            for kind in registry.KINDS
            for entry in registry.installed(kind)
            if entry.module in sys.modules and getattr(sys.modules[entry.module], entry.attr, None) in classes
        }
    )


def _inline(value: Any, smoke: bool, done: dict[str, str]) -> Any:
    """Replace `{recipe: path}` by the hash of that recipe."""
    if isinstance(value, dict):
        if set(value) == set(RecipeRef.model_fields):
            ref = RecipeRef.model_validate(value)
            if ref.key not in done:
                done[ref.key] = _hash(load_ref(ref, smoke).recipe, smoke, done)
            return {"recipe": done[ref.key]}
        return {key: _inline(item, smoke, done) for key, item in value.items()}
    return [_inline(item, smoke, done) for item in value] if isinstance(value, list) else value
