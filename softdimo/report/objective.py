"""The objective of a run, term by term: what `softdimo explain` prints and the report shows. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from softdimo.errors import PluginError
from softdimo.report.equation import weighted_sum
from softdimo.report.scale import number
from softdimo.spec import LossSpec

FITS = {
    "teacher": (
        "E_t E_{x_t ~ q(x_t | x_0)} mean_{masked i} -log p_phi(x_0^i | x_t, c)",
        "cross-entropy of masked diffusion, Di[M]O (arXiv 2503.15457)",
    ),
    "features": ("-E[log p(label | image)]", "cross-entropy of the labels, unless the network says otherwise"),
}
"""Objective and source of networks that are trained on data; a tokenizer's loss is its own."""


@dataclass(frozen=True)
class TermView:
    """One term of L_gen, for people."""

    name: str
    use: str
    symbol: str
    """As `L_{DiMO}`, in the notation of `equation`."""
    weight: str
    """A number, or the symbol of a weight that a ratio sets."""
    rule: str
    """How a ratio sets the weight; empty for a number."""
    equation: str
    source: str
    about: str
    """First sentence of the loss's docstring."""
    file: str
    """Module that implements it, as a path."""
    player: Mapping[str, Any]
    """Settings of the player that trains its critic; empty when it owns none."""


def views(terms: Sequence[Mapping[str, Any]]) -> list[TermView]:
    """Terms of a recipe (plain mappings with `use`) with what their classes say about themselves.

    A plugin that is not installed here leaves equation, source, description and file empty.
    """
    return [_view(term) for term in terms if isinstance(term, Mapping)]


def objective(terms: Sequence[TermView]) -> str:
    """`L_gen = L_{DiMO} + 4 L_{GAN}`, in the notation of `equation`."""
    return weighted_sum("L_{gen}", [(t.weight, t.symbol) for t in terms])


def player_line(player: Mapping[str, Any]) -> str:
    """`adam, lr 1e-4 (cosine after 100 of warm-up), betas 0, 0.99, every 2nd iteration, clip 1`."""
    optimizer = player.get("optimizer") or {}
    parts = [str(optimizer.get("name", "adam")), f"lr {plain(optimizer.get('lr', '?'))}" + _course(optimizer)]
    if optimizer.get("name") == "sgd":
        parts.append(f"momentum {plain(optimizer.get('momentum', 0))}")
    elif "betas" in optimizer:
        parts.append("betas " + ", ".join(plain(b) for b in optimizer["betas"]))
    if optimizer.get("weight_decay"):
        parts.append(f"weight decay {plain(optimizer['weight_decay'])}")
    if (every := int(player.get("every", 1))) > 1:
        parts.append(f"every {every} iterations")
    if (accumulate := int(player.get("accumulate", 1))) > 1:
        parts.append(f"{accumulate} turns per step")
    clip = player.get("clip")
    parts.append(f"clip {plain(clip)}" if clip else "no clipping")
    return "; ".join(parts)


def plain(value: Any) -> str:
    """A number of a recipe: 1e-5, 0.0003, 0.99."""
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e") if isinstance(value, int | float) else str(value)


def _course(optimizer: Mapping[str, Any]) -> str:
    decay, warmup = optimizer.get("decay", "constant"), optimizer.get("warmup", 0)
    parts = ([f"{warmup} iterations of warm-up"] if warmup else []) + (
        [f"{decay} decay to {plain(optimizer.get('final', 0))} of it"] if decay != "constant" else []
    )
    return f" ({', '.join(parts)})" if parts else ""


def _view(term: Mapping[str, Any]) -> TermView:
    use = str(term.get("use", ""))
    kind = use.rpartition(":")[2]
    name = str(term.get("name") or kind)
    cls = _class(use)
    shown = cls.__name__.removesuffix("Loss") if cls is not None and name == kind else name
    weight, rule = _weight(term.get("weight", 1.0), shown)
    equation, source = _said(cls, term)
    return TermView(
        name=name,
        use=use,
        symbol=f"L_{{{shown}}}",
        weight=weight,
        rule=rule,
        equation=equation,
        source=source,
        about=" ".join((cls.__doc__ or "").strip().split("\n\n")[0].split()) if cls is not None else "",
        file=f"{cls.__module__.replace('.', '/')}.py" if cls is not None else "",
        player=term.get("player") or {},
    )


def _said(cls: type | None, term: Mapping[str, Any]) -> tuple[str, str]:
    """Equation and source: of these settings, or of the class where it no longer takes them."""
    if cls is None or not issubclass(cls, LossSpec):
        return "", ""
    try:
        return cls.model_validate(term).objective()
    except ValidationError:
        return cls.equation, cls.source


def _weight(weight: Any, shown: str) -> tuple[str, str]:
    if isinstance(weight, Mapping):
        symbol = f"w_{{{shown}}}"
        of, ratio = weight.get("of", "dimo"), number(float(weight.get("ratio", 1)), 3).rstrip("0").rstrip(".")
        return symbol, f"set so that its gradient at the logits has {ratio} x the norm of that of {of}"
    return plain(weight), ""


def _class(use: str) -> type | None:
    from softdimo import registry

    try:
        return registry.find("loss", use)
    except PluginError:
        return None
