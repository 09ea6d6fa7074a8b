"""What metrics that average a reward share: the reward's identity, and prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from softdimo.errors import DataError
from softdimo.kinds import Cond
from softdimo.math.digest import digest_module, networks
from softdimo.spec import Spec

ELSEWHERE = ("weights", "at_once")
"""Settings that do not change a score: the weights have a hash of their own, and memory is not what is scored."""


def identity(spec: Spec, reward: object) -> dict[str, str | int | float]:
    """What a reward's scores depend on: its settings, and the SHA-256 of the weights of each of its networks."""
    found: dict[str, str | int | float] = {"reward": json.dumps(_plain(spec.model_dump(mode="json")), sort_keys=True)}
    for i, net in enumerate(networks(reward)):
        found["network" if i == 0 else f"network {i + 1}"] = digest_module(net)
    return found


def _plain(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return {key: _plain(value) for key, value in settings.items() if key not in ELSEWHERE}
    return [_plain(value) for value in settings] if isinstance(settings, list) else settings


def prompts_of(cond: Cond, metric: str) -> tuple[str, ...]:
    """The prompts of a batch. DataError where it has none."""
    if len(cond.prompts) != len(cond):
        raise DataError(
            f"{metric}: images are compared with prompts, and these conditions have none; use data of prompts"
        )
    return cond.prompts
