"""The model card of an export: what the model is, what it was trained with, how well it does, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softdimo.errors import PluginError
from softdimo.report.equation import text
from softdimo.report.folder import Folder
from softdimo.report.headline import about, headline, length
from softdimo.report.objective import objective, player_line, views
from softdimo.report.table import markdown_table

_FRONT = """---
library_name: softdimo
tags: [masked-diffusion, distillation, one-step, image-generation]
---
"""
_LOAD = """```python
import softdimo
g = softdimo.load("{folder}")
images = g({given}, seed=0)  # [B C H W] in [0, 1]
```"""
_LABELS = "`g.classes` names the labels, which may be given by name too; "


def card(run: Path, network: str) -> str:
    """Markdown of the card of `run`, whose `network` (student or teacher) is exported."""
    folder = Folder(run)
    found, reads = headline(folder), bool(folder.recipe.get("text_encoder"))
    given = 'prompts=["a red cube"]' if reads else "labels=[0, 1, 2]"
    networks = f"`{network}.safetensors`, with `tokenizer.safetensors`"
    parts = [
        f"{_FRONT}# {_line(folder.title)}",
        about(folder) + (f" {found.verdict}" if found is not None and found.verdict else ""),
        "## Use",
        _LOAD.format(folder="path/to/this/folder", given=given),
        f"{'' if reads else _LABELS}`g.tokens(...)` are the tokens before decoding, `g.to(device)` moves the networks. "
        f"Weights: EMA of the {network}, {networks}{' and `text_encoder.safetensors`' if reads else ''}; `recipe.yaml` "
        "is the resolved recipe.",
        *_training(folder),
        *_metrics(folder),
        "## License",
        _license(folder),
        "## Versions",
        _versions(folder),
    ]
    return "\n\n".join(parts) + "\n"


def _training(folder: Folder) -> list[str]:
    recipe, train = folder.recipe, folder.recipe.get("train") or {}
    lines = [f"* data: `{_use(recipe, 'data')}`", f"* tokenizer: `{_use(recipe, 'tokenizer')}`"]
    if recipe.get("text_encoder"):
        lines.append(f"* text encoder: `{_use(recipe, 'text_encoder')}`")
    lines.append(f"* teacher: `{_use(recipe, 'teacher')}`, mask schedule {recipe.get('schedule', 'arccos')}")
    lines.append(f"* {length(folder)}, seed {recipe.get('seed')}")
    if train.get("player"):
        lines.append(f"* player of the {folder.network}: {player_line(train['player'])}")
    out = ["## Training", "\n".join(lines)]
    terms = views(train.get("terms") or [])
    if terms:
        out.append(f"Objective: {_line(text(objective(terms)))}, where")
        out.append(
            "\n".join(
                f"* {_line(text(f'{t.symbol} = {t.equation}' if t.equation else t.symbol))}"
                + (f" ({t.source})" if t.source else "")
                + (f"; its weight is {t.rule}" if t.rule else "")
                for t in terms
            )
        )
    return out


def _metrics(folder: Folder) -> list[str]:
    evaluation = folder.evaluation
    if not evaluation.get("rows"):
        return ["## Metrics", "Not measured."]
    lines = []
    for name, value in (evaluation.get("evaluator") or {}).items():
        facts = value.items() if isinstance(value, dict) else [("", value)]
        lines.append(f"* {name}: " + ", ".join(f"{k} `{_line(v)}`".strip() for k, v in facts))
    lines.append(f"* evaluator hash: `{evaluation.get('evaluator_hash')}`")
    told = "Numbers compare only with those of the same evaluator hash, which covers:"
    return ["## Metrics", markdown_table(evaluation), told, "\n".join(lines)]


def _license(folder: Folder) -> str:
    use = _use(folder.recipe, "data")
    return (
        f"softdimo is licensed under Apache-2.0. These weights were made from the data set `{use}`{_data_says(use)} "
        "and from every pretrained network that `recipe.yaml` names: their licenses decide how the weights may be used "
        "and shared."
    )


def _data_says(use: str) -> str:
    """First sentence of the data set's docstring, where its plugin is installed."""
    from softdimo import registry

    try:
        said = (registry.find("data", use).__doc__ or "").strip().split("\n\n")[0]
    except PluginError:
        return ""
    return f" ({' '.join(said.split()).rstrip('.')})" if said else ""


def _versions(folder: Folder) -> str:
    lock = folder.lock
    found = dict(lock.get("distributions") or {}) | {k: lock[k] for k in ("python", "git") if lock.get(k)}
    return ", ".join(f"{name} {version}" for name, version in found.items()) or "Not recorded."


def _use(recipe: dict[str, Any], kind: str) -> str:
    section = recipe.get(kind)
    return str(section.get("use", "")) if isinstance(section, dict) else "none"


def _line(value: object) -> str:
    """Text on one line that cannot open Markdown or HTML structure."""
    return " ".join(str(value).split()).replace("<", "&lt;").replace("`", "'")
