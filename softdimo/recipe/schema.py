"""A JSON schema of recipes for editors, with the settings of every installed plugin."""

from __future__ import annotations

from typing import Any

from softdimo import registry
from softdimo.errors import PluginError
from softdimo.recipe.model import Recipe

Json = dict[str, Any]


def json_schema(broken: list[str] | None = None) -> Json:
    """JSON schema (draft 2020-12) of a recipe file.

    Every place for a component offers the installed plugins of its kind, told apart by `use`. No key is required,
    since a recipe may inherit it through `base:`; what is missing is said when the recipe is loaded. Plugins that
    cannot be imported are left out; what is wrong with them is appended to `broken`.
    """
    schema = Recipe.model_json_schema(by_alias=True)
    defs: Json = schema.setdefault("$defs", {})
    for kind in registry.KINDS:
        defs[f"component.{kind}"] = {"anyOf": _plugins(kind, defs, broken if broken is not None else [])}
    schema["properties"] = {
        "base": {"type": "string", "description": "A recipe that this one inherits from, relative to this file."},
        **schema["properties"],
    }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    finished: Json = _finish(schema)
    return finished


def _plugins(kind: str, defs: Json, broken: list[str]) -> list[Json]:
    """One reference per plugin of a kind; its schema and what that refers to are added to `defs`."""
    out: list[Json] = []
    entries = registry.installed(kind)
    names = [entry.name for entry in entries]
    for entry in entries:
        owner = registry.distribution(entry)
        try:
            spec = registry.load(kind, entry)
        except PluginError as error:
            broken.append(str(error))
            continue
        key = f"{owner}.{kind}.{entry.name}"
        own = spec.model_json_schema(by_alias=True, ref_template=f"#/$defs/{key}.{{model}}")
        for model, inner in own.pop("$defs", {}).items():
            defs[f"{key}.{model}"] = inner
        accepted = [f"{owner}:{entry.name}"] if names.count(entry.name) > 1 else [entry.name, f"{owner}:{entry.name}"]
        about = (spec.__doc__ or "").strip().partition("\n")[0]
        own["title"] = f"{kind} {entry.name}"
        own["properties"]["use"] = {"enum": accepted, "description": about}
        defs[key] = own
        out.append({"$ref": f"#/$defs/{key}"})
    return out


def _finish(value: Any) -> Any:
    """Refer to the plugins where a component is expected; require nothing."""
    if isinstance(value, list):
        return [_finish(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) >= {"component"} and isinstance(value["component"], str):
        rest = {k: v for k, v in value.items() if k not in ("component", "title", "default")}
        return {**rest, "$ref": f"#/$defs/component.{value['component']}"}
    return {key: _finish(item) for key, item in value.items() if not (key == "required" and isinstance(item, list))}
