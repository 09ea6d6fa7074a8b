"""The JSON schema for editors."""

from __future__ import annotations

import json

import pytest

from softdimo import registry
from softdimo.recipe.schema import json_schema
from tests.fakes import distribution


@pytest.fixture(scope="module")
def schema():
    return json.loads(json.dumps(json_schema()))


def resolve(schema, node):
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return node


def references(value):
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_reference_resolves(schema):
    targets = set(references(schema))
    assert targets
    for target in targets:
        assert target.removeprefix("#/$defs/") in schema["$defs"], target
        assert target.isascii()
        assert " " not in target


def test_every_installed_plugin_is_offered_by_name(schema):
    for kind in registry.KINDS:
        offered = {
            name
            for each in schema["$defs"][f"component.{kind}"]["anyOf"]
            for name in resolve(schema, each)["properties"]["use"]["enum"]
        }
        for entry in registry.installed(kind):
            if entry.name != "toy_broken":
                assert f"{registry.distribution(entry)}:{entry.name}" in offered
                assert entry.name in offered


def test_components_inside_components(schema):
    loss = schema["$defs"]["toy.loss.toy_loss"]
    inner = loss["properties"]["discriminator"]["anyOf"][0]
    assert inner["$ref"] == "#/$defs/component.discriminator"
    assert loss["properties"]["rewards"]["items"]["$ref"] == "#/$defs/component.reward"
    assert resolve(schema, schema["properties"]["data"])["anyOf"]


def test_it_documents_and_forbids_but_does_not_require(schema):
    train = schema["$defs"]["Train"]
    assert train["properties"]["iterations"]["description"]
    assert train["additionalProperties"] is False
    assert "base" in schema["properties"]
    assert "from" in schema["$defs"]["Start"]["properties"]
    assert not [d for d in schema["$defs"].values() if isinstance(d.get("required"), list)]


def test_broken_plugins_are_left_out_and_named(tmp_path, monkeypatch):
    entries = {"softdimo.reward": {"toy_gone": "no_such_module_anywhere:X"}}
    monkeypatch.syspath_prepend(distribution(tmp_path, "gone", entries))
    broken: list[str] = []
    text = json.dumps(json_schema(broken))
    assert "toy_gone" not in text
    assert len(broken) == 1
    assert broken[0].startswith("the reward `toy_gone` of gone cannot be imported")


def test_a_score_is_a_reward_or_a_list_of_rewards(schema):
    one, several = schema["$defs"]["SearchSection"]["properties"]["score"]["oneOf"]
    assert one["$ref"] == "#/$defs/component.reward"
    assert several["type"] == "array"
    item = resolve(schema, several["items"])
    assert item["properties"]["reward"]["$ref"] == "#/$defs/component.reward"
    assert set(item["properties"]) == {"name", "reward", "weight"}
