"""The parts of the page. Each returns None where the run has nothing for it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from softdimo.report.curves import charts
from softdimo.report.equation import mathml
from softdimo.report.equation import prose as greek
from softdimo.report.folder import Folder, Stage
from softdimo.report.headline import Headline, length
from softdimo.report.html import Html, details, join, prose, table, tag
from softdimo.report.objective import TermView, objective, player_line, views
from softdimo.report.table import Table, label

BUDGET = 4_000_000
"""Bytes of sample strips to embed; older strips are thinned out until they fit."""
_COLORS = {"dimo": 0, "gan": 1, "reward": 2}


def part(name: str, title: str, hint: str, *body: object, long: bool = False) -> Html:
    """A section with a heading and one muted sentence."""
    return tag(
        "section",
        tag("h2", title, id=f"{name}-title"),
        tag("p", hint, class_="hint") if hint else None,
        *body,
        id=name,
        class_="long" if long else None,
        aria_labelledby=f"{name}-title",
    )


def tiles(found: Headline, made: Table) -> Html:
    """Student, best teacher, and the teacher at its cheapest, as three large numbers."""

    def tile(who: str, row: Mapping[str, Any], css: str = "") -> Html:
        mean, _, sd = made.cell(row, found.metric).partition(" ± ")
        count = float(row.get("passes") or 1)
        cost = f"{count:g} network pass{'' if count == 1 else 'es'} per image"
        others = [n for n in made.metrics if n != found.metric and made.cell(row, n) != "–"][:2]
        rest = " · ".join(f"{label(n)[:-2]} {made.cell(row, n)}" for n in others)
        return tag(
            "div",
            tag("p", who, class_="role"),
            tag("p", row.get("name", ""), class_="who"),
            tag("p", mean, tag("small", f" ± {sd}") if sd else None, class_="big"),
            tag("p", f"{label(found.metric)} · {cost}"),
            tag("p", rest) if rest else None,
            class_=f"tile {css}".strip(),
        )

    shown = [tile("This run's student", found.student, "student")]
    if found.reference is not None:
        shown.append(tile("The teacher at its best", found.reference))
    if found.naive is not None:
        shown.append(tile("The teacher at its cheapest", found.naive))
    return tag("div", shown, class_="tiles", role="group", aria_label="Headline numbers")


def objective_part(folder: Folder) -> Html | None:
    """L_gen as an equation, then every term with its own equation, source and critic."""
    train = folder.recipe.get("train")
    if not isinstance(train, dict) or not train.get("terms"):
        return None
    terms = views(train["terms"])
    player = train.get("player") or {}
    return part(
        "objective",
        "Objective",
        f"The student's player: {player_line(player)}." if player else "",
        tag("div", mathml(objective(terms)), class_="equation"),
        tag("div", [_term(t) for t in terms], class_="terms"),
    )


def _term(term: TermView) -> Html:
    facts = [f"weight {term.weight}" if not term.rule else "weight by gradient ratio", term.source, term.file]
    return tag(
        "div",
        tag("div", tag("b", term.name), [tag("span", f, class_="chip") for f in facts if f], class_="row"),
        tag("p", prose(greek(term.about))) if term.about else None,
        tag("div", mathml(f"{term.symbol} = {term.equation}"), class_="formula") if term.equation else None,
        tag("p", mathml(term.weight, display=False), f" is {term.rule}.") if term.rule else None,
        tag("p", f"Its critic's player: {player_line(term.player)}.") if term.player else None,
        class_=f"term c{_COLORS.get(term.use.rpartition(':')[2], 4)}",
    )


def samples_part(folder: Folder) -> Html | None:
    """The newest sample strip, and a slider through the earlier ones."""
    files = thin(folder.samples, BUDGET)
    if not files:
        return None
    frames = [picture(file, _name(file), shown=file is files[-1]) for file in files]
    slider = None
    if len(files) > 1:
        slider = tag(
            "label",
            tag("span", "Training", class_="sr"),
            tag("input", type="range", min=0, max=len(files) - 1, value=len(files) - 1, aria_label="iteration"),
            tag("output", _name(files[-1])),
            class_="slider",
            hidden=True,
        )
    hint = "The same conditions and the same random numbers at every iteration."
    return part("samples", "Samples", hint, tag("div", tag("figure", frames, class_="plate"), slider, data_leaf=True))


def thin(files: Sequence[Path], budget: int) -> list[Path]:
    """The newest file and evenly spaced earlier ones, together within `budget` bytes."""
    if not files:
        return []
    count = len(files)
    while count > 1:
        chosen = [files[round(i * (len(files) - 1) / (count - 1))] for i in range(count)]
        if sum(f.stat().st_size for f in chosen) <= budget and count <= 40:
            return chosen
        count -= 1
    return [files[-1]]


def picture(file: Path, name: str, shown: bool = True) -> Html:
    """A PNG as an image with its bytes inside; what a strip says about itself becomes the alternative text."""
    raw = file.read_bytes()
    with PILImage.open(io.BytesIO(raw)) as opened:
        width, height = opened.size
        said = str(opened.info.get("Description", "")).strip()
    return tag(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(raw).decode()}",
        alt=f"Sample images, {name}. {said}".strip(),
        width=width,
        height=height,
        data_name=name,
        hidden=not shown,
    )


def _name(file: Path) -> str:
    return f"iteration {int(file.stem)}" if re.fullmatch(r"\d+", file.stem) else file.stem.replace("_", " ")


def lineage_part(stages: Sequence[Stage]) -> Html | None:
    """How the networks were made, and the curves of every run; those of runs that only measure are folded."""
    last = stages[-1]
    chain = [s for s in stages if s.made and s.folder.network != "features"]
    side = [s for s in stages if s not in chain]
    body: list[object] = []
    for stage in [*reversed(chain), *side]:
        folder = stage.folder
        if not (found := charts(folder.log, _rewards(folder))):
            continue
        train = folder.recipe.get("train") or {}
        line = tag("p", f"{length(folder)}; {player_line(train.get('player') or {})}", class_="hint")
        grid = tag("div", found, class_="charts")
        if stage is last and len(stages) == 1:
            body.append(grid)
        elif stage in chain:
            body += [tag("h3", folder.title, id=_anchor(stages, stage)), line, grid]
        else:
            body.append(details(folder.title, line, grid, id=_anchor(stages, stage)))
    if not body:
        return None
    hint = (
        "Averages over the iterations between two log rows; thin lines are the rows, thick lines their moving average."
    )
    flow = _flow(stages, chain, side) if len(stages) > 1 else None
    return part("curves", "Training", hint, flow, *body, long=True)


def _anchor(stages: Sequence[Stage], stage: Stage) -> str:
    return f"stage-{stages.index(stage)}"


def _rewards(folder: Folder) -> list[str]:
    train = folder.recipe.get("train") or {}
    terms = train.get("terms") or [] if isinstance(train, dict) else []
    return [str(t.get("name") or t.get("use")) for t in terms if t.get("rewards")]


def _flow(stages: Sequence[Stage], chain: Sequence[Stage], side: Sequence[Stage]) -> Html:
    """Boxes with arrows for tokenizer -> teacher -> student; networks that reward or measure stand below."""

    def box(stage: Stage) -> Html:
        folder = stage.folder
        inner = [tag("small", folder.network or "run"), folder.title]
        if not folder.log:
            return tag("li", tag("span", inner, class_="box"))
        css = "now" if stage is stages[-1] else None
        return tag("li", tag("a", inner, href=f"#{_anchor(stages, stage)}", class_=css))

    lists = [tag("ol", [box(s) for s in chain], class_="flow", aria_label="How the networks were made")]
    if side:
        lists.append(tag("p", "Rewards, measurements and comparisons also used", class_="hint"))
        lists.append(tag("ul", [box(s) for s in side], class_="flow side", aria_label="Other runs"))
    return join(lists)


def reproduce_part(folder: Folder) -> Html | None:
    """Command, versions, the resolved recipe."""
    lock, recipe = folder.lock, folder.recipe_text
    if not lock and not recipe:
        return None
    command = lock.get("command")
    versions = lock.get("distributions") if isinstance(lock.get("distributions"), dict) else {}
    rest = {k: v for k, v in lock.items() if k not in ("command", "distributions", "sources")}
    facts = [(("", [k, _short(v)])) for k, v in {**rest, **(versions or {})}.items() if not isinstance(v, dict | list)]
    return part(
        "reproduce",
        "Reproduce",
        "Everything that was resolved before the run began.",
        tag("pre", " ".join(map(str, command))) if isinstance(command, list) else None,
        details("Versions and machine", tag("div", table(["", ""], facts, "Lock file"), class_="facts"))
        if facts
        else None,
        details("Resolved recipe", tag("pre", recipe)) if recipe else None,
        long=True,
    )


def health_part(folder: Folder) -> Html | None:
    """Statements about the run's state; those with advice stand out."""
    ended = f"training ended early: {folder.ended['why']}" if folder.ended else ""
    lines = [line for line in (ended, *folder.health) if line]
    if not lines:
        return None
    items = [tag("li", line, class_="warn" if ": " in line else None) for line in lines]
    return part("health", "Health", "What the last log row says.", tag("ul", items, class_="health"))


def provenance(evaluation: Mapping[str, Any]) -> Html | None:
    """What the numbers depend on: one row per metric with its fingerprint, and the hash of all of it."""
    evaluator = evaluation.get("evaluator")
    if not isinstance(evaluator, dict) or not evaluator:
        return None
    known = {k: v for k, v in evaluator.items() if isinstance(v, dict)}
    keys = list(dict.fromkeys(k for v in known.values() for k in v))
    rows = [("", [name, *(_short(v.get(k, "–")) for k in keys)]) for name, v in known.items()]
    other = [("", [k, _short(v)]) for k, v in evaluator.items() if not isinstance(v, dict)]
    other.append(("", ["evaluator hash", _short(evaluation.get("evaluator_hash", "–"))]))
    seeds = ", ".join(map(str, evaluation.get("seeds") or []))
    drawn = [("", [r.get("name", ""), _settings(r["sampler"])]) for r in evaluation.get("rows", []) if r.get("sampler")]
    return details(
        "What these numbers depend on",
        tag("p", "Rows compare only under one evaluator hash: it covers every line below.", class_="hint"),
        tag("div", table(["", ""], other, "Evaluator"), class_="facts"),
        tag("h3", "Metrics"),
        tag("div", table(["metric", *(k.replace("_", " ") for k in keys)], rows, "Fingerprints"), class_="facts"),
        [tag("h3", f"Samplers, seeds {seeds}"), tag("div", table(["", ""], drawn, "Samplers"), class_="facts")]
        if drawn
        else None,
    )


def _settings(value: Any) -> str:
    """Settings on one line, those that are null left out."""
    if isinstance(value, Mapping):
        inner = {k: v for k, v in value.items() if v is not None}
        return ", ".join(f"{k}: {_nested(v)}" for k, v in inner.items())
    return str(value)


def _nested(value: Any) -> str:
    return f"{{{_settings(value)}}}" if isinstance(value, Mapping) else str(value)


def _short(value: Any) -> object:
    """A value for a table cell; long hashes are cut and keep their whole in the title."""
    text = "–" if value is None else str(value)
    cut = re.sub(r"[0-9a-f]{20,}", lambda m: f"{m[0][:12]}…", text)
    return text if cut == text else tag("code", cut, title=text)
