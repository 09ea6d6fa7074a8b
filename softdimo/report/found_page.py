"""The page of test-time searches: for every condition the start, the steps and the winner with their scores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from softdimo import __version__
from softdimo.report.equation import mathml
from softdimo.report.found_card import NAMES, card, thinned, thumbnail
from softdimo.report.html import Html, details, table, tag
from softdimo.report.page import document
from softdimo.report.scale import number, spread
from softdimo.report.searched import FORWARD, SOURCE
from softdimo.report.sections import part
from softdimo.search.winners import CONDITIONS

Json = dict[str, Any]
BUDGET = 32_000_000
"""Bytes of pictures on the page; conditions beyond it are told in numbers, with links to their files."""


def page(whole: Json, folder: Path) -> str:
    """The page as HTML. `whole` is `search.json`; pictures come from the conditions' folders."""
    results = whole["conditions"]
    title = f"Test-time search: {_few([str(r['text']) for r in results]) or whole['model']}"
    top = tag(
        "header",
        tag("p", "softdimo search", class_="over"),
        tag("h1", title),
        tag("p", _lead(whole), class_="lead"),
        [_tiles(whole), tag("p", _verdict(whole), class_="verdict")] if results else None,
    )
    parts = [_conditions(whole, folder)] if results else []
    if len(results) > 1:
        parts.append(_summary(whole))
    parts.append(_objective(whole))
    by = f"Written by softdimo {__version__}. The folder of this page has every picture in its own size."
    return document(title, top, parts, by, "found.css")


def _few(texts: list[str], most: int = 60) -> str:
    """The first conditions, as many as fit into a title."""
    times = Counter(texts)
    texts = [text if n == 1 else f"{text} ({n} times)" for text, n in times.items()]
    shown: list[str] = []
    for text in texts:
        if shown and len(", ".join([*shown, text])) > most:
            return f"{', '.join(shown)} and {_count(len(texts) - len(shown), 'more')}"
        shown.append(text if len(text) <= most else f"{text[: most - 1]}…")
    return ", ".join(shown)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 or what == 'more' else 's'}"


def _lead(whole: Json) -> str:
    n, missing = len(whole["conditions"]), whole["missing"]
    told = (
        f"{whole['model']}, a one-step student, drew {_count(n, 'condition')}. For each, its input was searched for "
        f"the image with the highest score ({' + '.join(whole['score'])}) by {whole['method']}; its weights did not "
        "change."
    )
    again = f" {_count(missing, 'condition')} not searched yet; the same command again goes on." if missing else ""
    return told + again


def _values(results: list[Json], name: str, group: str = "", key: str = "") -> list[float]:
    """A number of one kind of picture, over the conditions that have it."""
    rows = [r["shown"][name] for r in results if name in r["shown"]]
    found = [row[group].get(key) if group else row["score"] for row in rows]
    return [value for value in found if value is not None]


def _mean(results: list[Json], name: str, group: str = "", key: str = "") -> str:
    """Mean over the conditions with its standard error."""
    values = _values(results, name, group, key)
    if not values:
        return "–"
    return spread(fmean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0)


def _cost(results: list[Json]) -> str:
    """Forward-equivalents of a search, or their range."""
    costs = [float(r["budget"]["total"]) for r in results]
    return f"{min(costs):g}" if min(costs) == max(costs) else f"{min(costs):g} to {max(costs):g}"


def _best(results: list[Json]) -> str:
    numbers = {r["best_of"] for r in results if r["best_of"] is not None}
    return f"Best of {numbers.pop()}" if len(numbers) == 1 else "Best of as many"


def _tiles(whole: Json) -> Html:
    """Scores without and with the search, and what they cost."""
    results = whole["conditions"]

    def tile(name: str, who: str, cost: str, css: str = "") -> Html:
        watched = [f"{held} {_mean(results, name, 'held_out', held)}" for held in whole["held_out"]]
        mean, _, bar = _mean(results, name).partition(" ± ")
        return tag(
            "div",
            tag("p", who, class_="who"),
            tag("p", mean, tag("small", f" ± {bar}") if bar else None, class_="big"),
            tag("p", f"score · {cost}"),
            tag("p", f"held out: {', '.join(watched)}") if watched else None,
            class_=f"tile {css}".strip(),
        )

    spent = f"{_cost(results)} forward-equivalents"
    shown = [
        tile("one_step", "No search", "1 forward-equivalent"),
        tile("winner", f"Searched by {whole['method']}", spent, "student"),
    ]
    if any("best_of_n" in r["shown"] for r in results):
        shown.append(tile("best_of_n", f"{_best(results)} random inputs", spent))
    return tag("div", shown, class_="tiles", role="group", aria_label="Headline numbers")


def _verdict(whole: Json) -> str:
    """What became of the score and of what nobody optimized, in a sentence or two."""
    results = whole["conditions"]
    pairs = list(zip(_values(results, "one_step"), _values(results, "winner"), strict=True))
    better = sum(after > before for before, after in pairs)
    if len(results) == 1:
        said = [f"The search {'raised the score' if better else 'found no higher score'}."]
    else:
        said = [f"The search raised the score of {better} of {len(results)} conditions."]
    for held in whole["held_out"]:
        before, after = (_values(results, name, "held_out", held) for name in ("one_step", "winner"))
        if before and len(before) == len(after):
            a, b = fmean(before), fmean(after)
            way = "rose too" if b > a else "stayed" if b == a else "fell: the score may gain by what it overlooks"
            said.append(f"{held}, which nothing optimized, {way} ({number(a)} to {number(b)}).")
    compared = [r["shown"] for r in results if "best_of_n" in r["shown"]]
    if compared:
        won = sum(s["winner"]["score"] > s["best_of_n"]["score"] for s in compared)
        lost = sum(s["winner"]["score"] < s["best_of_n"]["score"] for s in compared)
        said.append(
            f"The best of as many random inputs, at the same cost, scored lower for {won} and higher for {lost}."
        )
    return " ".join(said)


def _conditions(whole: Json, folder: Path) -> Html:
    left, cards = BUDGET, []
    for result in whole["conditions"]:
        shown = thinned(list(result["shown"]))
        home = folder / CONDITIONS / result["key"]
        pictures = {name: thumbnail(home / f"{name}.png") for name in shown} if left > 0 else {}
        left -= sum(len(source) for source, _ in pictures.values())
        cards.append(card(whole, result, shown, pictures))
    hint = "No search: what the student draws in one pass, of the most probable tokens."
    if any("start" in r["shown"] for r in whole["conditions"]):
        hint += " Start and steps: the climb on which the winner was found."
    return part("conditions", "Conditions", hint, *cards, long=True)


def _summary(whole: Json) -> Html:
    """Means over the conditions."""
    results = whole["conditions"]
    several = whole["score"] if len(whole["score"]) > 1 else []
    costs = {"one_step": "1", "winner": _cost(results), "best_of_n": _cost(results)}
    rows = []
    for name in NAMES:
        if any(name in r["shown"] for r in results):
            rewards = [_mean(results, name, "rewards", r) for r in several]
            watched = [_mean(results, name, "held_out", h) for h in whole["held_out"]]
            said = {"start": "start of the winner", "best_of_n": _best(results).lower()}.get(name, NAMES[name])
            cells = [said, costs.get(name, "–"), _mean(results, name), *rewards, *watched]
            rows.append(("student" if name == "winner" else "", cells))
    heads = ["", "forward-equivalents", "score", *several, *(f"{h}, held out" for h in whole["held_out"])]
    hint = f"Means over {len(results)} conditions and their standard errors."
    return part("summary", "All together", hint, table(heads, rows, "Means"))


def _objective(whole: Json) -> Html:
    calibration = max((r["budget"]["calibration"] for r in whole["conditions"]), default=0)
    words = [
        f"R, the score, is {whole['reward']}. A higher one is better.",
        f"e is the student's input embedding. Every start is a random input of the student; {SOURCE}.",
        f"Forward-equivalents count passes of the student: {FORWARD}. Decoder and rewards run with every pass."
        + (f" {calibration} per condition found mean and deviation of each reward." if calibration else ""),
        "Held-out rewards are measured and never optimized. Where they fall while the score rises, it is exploited.",
        f"Seed {whole['seed']}. A condition's result does not depend on the others.",
    ]
    settings = [("", [key, "–" if value is None else str(value)]) for key, value in whole["settings"].items()]
    lock = whole.get("lock") or {}
    versions = [("", [key, value]) for key, value in (lock.get("distributions") or {}).items()]
    return part(
        "objective",
        "What was searched for",
        "",
        tag("div", mathml(whole["equation"]), class_="equation"),
        tag("ul", [tag("li", line) for line in words], class_="words"),
        details(
            "Settings and versions",
            tag("div", table(["", ""], [*settings, *versions], "Settings and versions"), class_="facts"),
            tag("pre", " ".join(map(str, lock.get("command") or []))),
        ),
    )
