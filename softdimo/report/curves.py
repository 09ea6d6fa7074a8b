"""Which columns of `log.csv` belong into one chart, and what a reader should see in it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from softdimo.report.folder import Log
from softdimo.report.html import Html
from softdimo.report.svg import Series, chart


@dataclass(frozen=True)
class Panel:
    """One chart: the columns that match `pattern` (its groups name the line)."""

    title: str
    pattern: str
    note: str = ""
    unit: str = ""
    log_y: bool = False
    keep: Callable[[Sequence[float]], bool] = lambda values: True


def _varies(values: Sequence[float]) -> bool:
    finite = [v for v in values if math.isfinite(v)]
    return max(finite) - min(finite) > 1e-9 * max(1.0, abs(finite[0]))


PANELS = (
    Panel("Divergence", r"(.+)/divergence", "auxiliary from teacher at masked units; what L_DiMO lowers", "nats"),
    Panel("Loss", r"loss"),
    Panel("Loss of each term", r"(.+)/loss", "before its weight; a surrogate has the right gradient only"),
    Panel("Token entropy", r"(?:.+/)?(student|auxiliary|teacher)_entropy", "a student near 0 has collapsed", "nats"),
    Panel("Auxiliary lag", r"(?:.+/)?(auxiliary_lag)", "cross-entropy above entropy; near 0 it keeps up", "nats"),
    Panel("Auxiliary", r"(?:.+/)?(auxiliary_ce)", "cross-entropy on the student's samples", "nats"),
    Panel("Discriminator", r"(?:.+/)?(real|fake)", "both near one half: it cannot tell them apart", "probability"),
    Panel("Adversarial losses", r"(?:.+/)?(generator|discriminator|r1)", "of the generator and the discriminator"),
    Panel("Gradient norm", r"(.+/critic|.+)[_/]grad_norm|grad_norm", "of each player, before clipping", log_y=True),
    Panel("Gradient at the logits", r"(.+)/grad_at_logits", "of each term, before its weight", log_y=True),
    Panel("Weight", r"(.+)/weight", "set from the ratio of gradient norms", keep=_varies),
    Panel("Accuracy", r"accuracy|(.+)/accuracy"),
)  # fmt: skip
_REWARD = re.compile(r"(.+?)/(?:held_out/)?(.+)")


def charts(log: Log, rewards: Sequence[str] = ()) -> list[Html]:
    """One chart per panel that the log has columns for, then one per prefix for columns nobody knows.

    `rewards` are names of reward terms: their other columns are optimized rewards, beside `held_out/` ones.
    """
    if not log:
        return []
    left = dict(log.columns)
    out = []
    lag = _lag(left)
    left |= lag
    for term in dict.fromkeys([*rewards, *(k.split("/held_out/")[0] for k in left if "/held_out/" in k)]):
        out.append(_reward_chart(log, term, left))
    known = []
    for panel in PANELS:
        found = {k: m for k in left if (m := re.fullmatch(panel.pattern, k))}
        columns = {k: left.pop(k) for k in found}
        columns = {k: v for k, v in columns.items() if panel.keep(v)}
        if columns:
            series = [
                Series(_name(found[k], panel.title), log.iteration, v, color(_name(found[k], ""), i))
                for i, (k, v) in enumerate(columns.items())
            ]
            known.append(chart(panel.title, series, "iteration", panel.unit, log_y=panel.log_y, note=panel.note))
    groups: dict[str, dict[str, list[float]]] = {}
    for key, values in left.items():
        prefix, _, name = key.rpartition("/")
        groups.setdefault(prefix, {})[name] = values
    other = [
        chart(prefix or key, [Series(key, log.iteration, values)], "iteration")
        for prefix, columns in groups.items()
        for key, values in columns.items()
    ]
    return known[:4] + [c for c in out if c] + known[4:] + other


def color(name: str, index: int) -> int:
    """The color of a line: players and roles keep theirs from chart to chart."""
    fixed = {"dimo": 0, "generator": 5, "student": 0, "gan": 1, "fake": 1, "discriminator": 1, "generated": 1,
             "reward": 2, "real": 2, "auxiliary": 3, "teacher": 4}  # fmt: skip
    return fixed.get(name.removesuffix("'s critic"), index)


def _name(match: re.Match[str], default: str) -> str:
    found = next((g for g in match.groups() if g), "")
    found = found.replace("/critic", "'s critic")
    return {"fake": "generated", "auxiliary_ce": "auxiliary", "auxiliary_lag": "lag"}.get(
        found, found
    ) or default.lower()


def _lag(columns: dict[str, list[float]]) -> dict[str, list[float]]:
    """Auxiliary lag: its cross-entropy on student samples minus its entropy, where a term logs both."""
    out = {}
    for key, ce in columns.items():
        prefix, _, name = key.rpartition("/")
        entropy = columns.get(f"{prefix}/auxiliary_entropy")
        if name == "auxiliary_ce" and entropy is not None and f"{prefix}/auxiliary_lag" not in columns:
            out[f"{prefix}/auxiliary_lag"] = [a - b for a, b in zip(ce, entropy, strict=True)]
    return out


def _reward_chart(log: Log, term: str, left: dict[str, list[float]]) -> Html | None:
    skip = {f"{term}/{k}" for k in ("loss", "weight", "grad_at_logits", "critic_grad_norm")}
    columns = {k: left.pop(k) for k in list(left) if k.startswith(f"{term}/") and k not in skip}
    if not columns:
        return None
    series = []
    for i, (key, values) in enumerate(columns.items()):
        match = _REWARD.fullmatch(key)
        name = match.group(2) if match else key
        held = "/held_out/" in key
        series.append(
            Series(
                f"{name} (held out)" if held else f"{name} (optimized)", log.iteration, values, 3 if held else 2 + 3 * i
            )
        )
    note = "if the optimized one rises while the held-out one falls, the reward is being hacked"
    return chart("Reward", series, "iteration", note=note if any("held_out" in k for k in columns) else "")
