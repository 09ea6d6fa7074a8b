"""The run in one sentence and three numbers: the student's one pass against the teacher's many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from softdimo.report.folder import Folder
from softdimo.report.scale import number
from softdimo.report.table import Table, lower_is_better, passes, spelled

Row = Mapping[str, Any]


def about(folder: Folder) -> str:
    """One paragraph: what was trained from what, on what, for how long."""
    recipe = folder.recipe
    train = recipe.get("train") if isinstance(recipe.get("train"), dict) else None
    data, teacher = (_use(recipe.get(k)) for k in ("data", "teacher"))
    where = f" on the data set {data}" if data else ""
    parts = []
    if train and folder.network == "student":
        terms = train.get("terms") or []
        names = ", ".join(str(t.get("name") or t.get("use")) for t in terms)
        parts.append(
            f"A masked-diffusion teacher ({teacher or 'given by its weights'}) is distilled into a student that draws "
            f"an image in one network pass{where}."
        )
        parts.append(f"The student minimizes {_count(len(terms), 'term')} ({names}) for {length(folder)}.")
        start = (train.get("start") or {}).get("from")
        parts.append("It starts from an earlier student." if start else "It starts as a copy of the teacher.")
    elif train:
        what = {
            "teacher": "A masked-diffusion teacher is trained",
            "tokenizer": "A tokenizer, which turns images into tokens and back, is trained",
            "features": "A feature network, used to measure and to reward, is trained",
        }.get(folder.network, f"The {folder.network} is trained")
        parts.append(f"{what}{where} for {length(folder)}.")
    doing = [w for k, w in (("eval", "an evaluation"), ("search", "a test-time search")) if recipe.get(k)]
    if doing and not train:
        parts.append(f"This run is {' and '.join(doing)}{where}.")
    if text := _use(recipe.get("text_encoder")):
        parts.append(f"Prompts are encoded by the text encoder {text}.")
    seed = recipe.get("seed")
    return " ".join(parts + ([f"Seed {seed}."] if seed is not None else []))


@dataclass(frozen=True)
class Headline:
    """What the first screen says."""

    metric: str
    student: Row
    reference: Row | None
    """The teacher at its best."""
    naive: Row | None
    """The teacher with its fewest passes."""
    verdict: str


def headline(folder: Folder) -> Headline | None:
    """The student of this run against its teacher; None where there is no student row with the leading metric."""
    table = Table(folder.evaluation)
    metric = table.headline
    students = [r for r in table.of("student") if math.isfinite(table.value(r, metric))]
    if not students:
        return None
    student = _own(folder, students)
    teachers = sorted(
        (r for r in table.of("teacher") if math.isfinite(table.value(r, metric))),
        key=lambda r: float(r.get("passes") or 0),
    )
    sign = 1 if lower_is_better(metric) else -1
    best = min(teachers, key=lambda r: sign * table.value(r, metric), default=None)
    naive = teachers[0] if teachers and teachers[0] is not best else None
    return Headline(metric, student, best, naive, _verdict(table, metric, student, teachers, sign))


def _own(folder: Folder, students: list[Row]) -> Row:
    """The row of the student that this run made: without weights of its own and decoded hard; else the first."""
    written = (folder.recipe.get("eval") or {}).get("rows") or []
    own = {r.get("name") for r in written if r.get("of") == "student" and not r.get("weights")}
    hard = [r for r in students if r.get("decode", "hard") == "hard"]
    return next((r for r in hard if r.get("name") in own), (hard or students)[0])


def _verdict(table: Table, metric: str, student: Row, teachers: list[Row], sign: int) -> str:
    if not teachers:
        return ""
    mine, shown = table.value(student, metric), spelled(metric)
    level = [r for r in teachers if sign * table.value(r, metric) <= sign * mine]
    worse = [r for r in teachers if sign * table.value(r, metric) > sign * mine]
    one = float(student.get("passes") or 1)
    pass_word = "One pass of the student" if one == 1 else f"The student's {one:g} passes"
    if not level:
        last = worse[-1]
        return (
            f"{pass_word} {'is' if one == 1 else 'are'} ahead of every teacher row, up to {passes(last)} passes "
            f"({shown} {number(mine)} against {number(table.value(last, metric))})."
        )
    reach = level[0]
    cost = float(reach.get("passes") or 0)
    said = f"The teacher needs {cost:g} passes to match the student's {'one' if one == 1 else f'{one:g}'}"
    beaten = [r for r in worse if float(r.get("passes") or 0) < cost]
    if cost <= one:
        theirs = number(table.value(reach, metric))
        return f"The teacher is ahead at the student's own cost ({shown} {theirs} against {number(mine)})."
    if beaten:
        return (
            f"{said}: {shown} {number(table.value(reach, metric))} at {cost:g}, but only "
            f"{number(table.value(beaten[-1], metric))} at {passes(beaten[-1])}, against {number(mine)}."
        )
    return f"{said} ({shown} {number(table.value(reach, metric))} against {number(mine)})."


def _use(component: Any) -> str:
    return str(component.get("use", "")) if isinstance(component, dict) else ""


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def length(folder: Folder) -> str:
    """`600 iterations of 48 samples`, or `310 of 600 iterations of 48 samples`."""
    train = folder.recipe.get("train") or {}
    part = f"{folder.ended['iterations']} of " if folder.ended else ""
    return f"{part}{train.get('iterations', '?')} iterations of {train.get('batch_size', '?')} samples"
