"""No network that took part in training may judge its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softdimo.errors import RecipeError
from softdimo.kinds import Features
from softdimo.math.digest import digest_module, networks


def network_digests(components: Mapping[str, object]) -> dict[str, str]:
    """SHA-256 of the weights of every network inside the given components, for `Pieces.forbidden`.

    Looks at modules, at feature networks inside them, and at what plain objects, lists and mappings hold. Keys are the
    given names; a component with several networks gets `name (2)` and so on.
    """
    out: dict[str, str] = {}
    for name, component in components.items():
        found = list(dict.fromkeys(digest_module(net) for net in networks(component, Features)))
        out |= {name if i == 0 else f"{name} ({i + 1})": digest for i, digest in enumerate(found)}
    return out


def refuse_players(evaluator: Mapping[str, Mapping[str, Any]], forbidden: Mapping[str, str]) -> None:
    """Raise RecipeError where a metric's network took part in training: it would grade its own homework.

    `evaluator` holds the metrics' fingerprints by name, `forbidden` digests by the part that the network played.
    """
    players = {digest: role for role, digest in forbidden.items()}
    faults = [
        f"the metric `{name}` judges with the network that training used as {players[value]}"
        for name, fingerprint in evaluator.items()
        for value in fingerprint.values()
        if value in players
    ]
    if faults:
        raise RecipeError(
            f"eval.metrics: {'; '.join(faults)}. Such a number says nothing; give the metric a network of its own "
            "(one trained from another seed will do)"
        )
