"""Measuring the rows and writing eval.json.

Every number stands beside what it depends on: the evaluator (formulas, weights of the feature networks, reference
images) has one hash, and every row has a key over its own settings and weights. A row whose key is in the file already
is kept, so an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from softdimo.errors import CheckpointError, RecipeError
from softdimo.evaluate.guard import refuse_players
from softdimo.evaluate.parts import Look, Parts, parts_of
from softdimo.evaluate.rows import (
    Pieces,
    Progress,
    Stream,
    Subject,
    at_data,
    real_images,
    reconstruction_split,
    reconstructions,
    reference_images,
    samples,
    source_of,
)
from softdimo.files import write_json
from softdimo.kinds import Metric, Sampler
from softdimo.math.digest import digest_json, digest_module, seed_of
from softdimo.runs.ranks import ALONE, Ranks

Json = dict[str, Any]
Judges = Mapping[str, Metric]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    samples: int
    seeds: tuple[int, ...]
    batch_size: int


@dataclass(frozen=True)
class Row:
    """One row of the result."""

    name: str
    subject: Subject
    halves: bool = False

    def identity(self, pieces: Pieces, digest: Callable[[nn.Module], str]) -> Json:
        """Everything that its numbers depend on, beside the evaluator and the plan; networks by their digests."""
        net, decoded = self.subject.net, self.subject.of != "real" and pieces.tokenizer is not None
        return {
            "of": self.subject.of,
            "halves": self.halves,
            "decode": self.subject.decode,
            "split": self.subject.split,
            "sampler": _settings(self.subject.sampler),
            "net": digest(net) if net is not None else None,
            "tokenizer": digest(pieces.need_tokenizer(self.name)) if decoded else None,
            "held_out": len(pieces.data.source("held_out")) if self.subject.of in ("real", "reconstruction") else None,
        } | ({"text": pieces.text} if decoded and pieces.text is not None else {})


def evaluate(
    pieces: Pieces,
    path: Path,
    *,
    samples: int,
    seeds: Sequence[int],
    batch_size: int = 100,
    progress: Progress = lambda what, done, total: None,
    real: bool = True,
    reference: int | None = None,
    lock: Json | None = None,
    trial: bool = False,
) -> Json:
    """Measure every row, write `path` (eval.json) after each, and return its content.

    The reference is the training split without augmented copies, or `reference` images of it; a metric with a reference
    of its own (a file) keeps to that. A `real` row becomes two: `<name> held out`, the held-out images against the
    reference (the judge's own accuracy stands here), and `<name> halves`, disjoint random halves of the training data
    against each other, anew per seed: the floor of distances (not of metrics with a file, and no such row where files
    are all that metrics compare with). Where no row is `real`, both are added all the same (unless the data set has no
    images, or `real` is false: a part of a table, to be gathered with the rest).

    Networks draw `samples` images in all for each row, an equal share per seed. Every seed of every row draws for the
    same conditions, the data's first ones, so that with prompts each seed is one more image of each (`prompts` in the
    row counts them). The random numbers of a batch depend on seed and place alone, so rows are paired and may come in
    any order. `value` is the metric of all images together; `values` are those of each seed's share alone, and `sd` is
    their sample standard deviation (null where nothing is random, and for a single seed). A share is smaller than the
    whole, so its Frechet distance is higher, and `sd` is above the spread that `value` has.

    A row that is interrupted goes on with the batches that are missing (see `parts`); its numbers are the same. In a
    `trial`, noise stands for the real images of a data set that has none.

    The ranks of `pieces.ranks` share the batches of each row, in which nothing depends on their number; all return the
    table, and the first writes it. Every rank looks at the whole reference.

    `lock` tells the versions that measure: that of the last row measured stands in the file, and each row says `by`
    which softdimo it was measured.

    Raises:
        RecipeError: a metric judges with a network of `forbidden`; two rows or two numbers share a name; `decode: soft`
            of a sampler with several steps; a row of real images of a data set that has none.
        DataError: a split has no images, or too few for a metric; no real images, and a metric without a file.
        CheckpointError: `path` exists and is not an evaluation.
    """
    before, lock = pieces.ranks.agree(_read(path)), lock or {}
    kept = {row["key"]: row for row in before.get("rows", []) if "key" in row}
    plan = Plan(math.ceil(samples / len(seeds)), tuple(seeds), batch_size)
    with torch.no_grad():
        judges, whole = pieces.metrics(), pieces.metrics()
        rows = _rows(pieces, judges, real)
        _feed_reference((judges, whole), reference_images(pieces, judges, reference, batch_size, progress, trial))
        evaluator: Json = pieces.ranks.once(lambda: {name: dict(m.fingerprint()) for name, m in judges.items()})
        refuse_players(evaluator, pieces.forbidden)
        evaluator["data"] = pieces.data.fingerprint()
        result: Json = {
            "evaluator": evaluator,
            "evaluator_hash": digest_json(evaluator),
            "samples": samples,
            "seeds": list(seeds),
            "rows": [],
            "lock": before.get("lock", lock),
        }
        how = {"evaluator": result["evaluator_hash"], "samples": samples, "seeds": list(seeds), "batch": batch_size}
        digest = cache(digest_module)  # rows share networks
        keys = [digest_json(how | row.identity(pieces, digest)) for row in rows]
        for row, key in zip(rows, keys, strict=True):
            parts = None
            if key not in kept:
                by = {k: lock[k] for k in ("softdimo", "git") if k in lock}
                parts = Parts(parts_of(path), key, judges, pieces.ranks, pieces.device)
                kept[key] = _measure(row, pieces, judges, whole, plan, progress, parts) | {"by": by}
                result["lock"] = lock
            found = [(r, k) for r, k in zip(rows, keys, strict=True) if k in kept]  # later ones may be there too
            result["rows"] = [_as_named(kept[k], r, k) for r, k in found]
            if pieces.ranks.first:
                write_json(path, result)
                if parts is not None:
                    parts.remove()
    if pieces.ranks.first:
        shutil.rmtree(parts_of(path), ignore_errors=True)
    return result


def _as_named(measured: Json, row: Row, key: str) -> Json:
    """A measured row as this table has it: under its name, and with the sweep that it is part of."""
    sweep = {"sweep": {k: list(v) for k, v in row.subject.sweep.items()}} if row.subject.sweep else {}
    return {k: v for k, v in measured.items() if k != "sweep"} | {"name": row.name, "key": key} | sweep


def _rows(pieces: Pieces, judges: Judges, real: bool) -> list[Row]:
    subjects = pieces.rows
    if not pieces.data.has_images:
        if shown := [s.name for s in subjects if s.of in ("real", "reconstruction")]:
            raise RecipeError(
                f"eval.rows: `{shown[0]}` is of real images, but the data set has none; remove the row, or use data "
                "with images"
            )
    elif real and not any(subject.of == "real" for subject in subjects):
        subjects = [Subject("real", "real"), *subjects]
    out: list[Row] = []
    for subject in subjects:
        if subject.of == "real":
            out.append(Row(f"{subject.name} held out", subject))
            if at_data(judges):
                out.append(Row(f"{subject.name} halves", subject, halves=True))
        else:
            out.append(Row(subject.name, subject))
    names = [row.name for row in out]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(f"eval.rows: two rows are called {', '.join(map(repr, twice))}; names must differ")
    return out


def _measure(
    row: Row, pieces: Pieces, judges: Judges, whole: Judges, plan: Plan, progress: Progress, parts: Parts
) -> Json:
    began = time.perf_counter()
    subject = row.subject
    about: Json = {}
    notes: list[str] = []
    if row.halves:
        about["split"] = "train"
        notes.append("disjoint halves of the training split against each other, drawn anew per seed")
    elif subject.of == "real":
        about["split"] = "held_out"
    elif subject.of == "reconstruction":
        about["split"], note = reconstruction_split(subject, pieces)
        notes += [note] if note else []
    drawn = subject.of in ("teacher", "student")
    if drawn and (prompts := set(pieces.data.conditions(plan.samples).prompts)):
        about["prompts"] = len(prompts)
    random = row.halves or drawn
    values: dict[str, list[float]] = {}
    seeds = plan.seeds if random else plan.seeds[:1]
    pool = whole if random and not row.halves and len(seeds) > 1 else {}
    for metric in pool.values():
        metric.begin(row.name, seeds if drawn else (), parts.scratch)
        metric.reset()
    n = 0
    for seed in seeds:
        name = f"{row.name}, seed {seed}" if random else row.name
        report = _under(name, progress)
        current, stream = _halves(pieces, plan, seed, report) if row.halves else (judges, None)
        stream = stream or partial(_stream, row, pieces, plan, seed, about.get("split", ""), report)
        for metric in current.values():
            metric.begin(name if len(seeds) > 1 else row.name, (seed,) if drawn else (), parts.scratch)
        share, found, warnings = _judge(current, parts.looks(seed, current, stream), pool, pieces.ranks)
        n = n + share if pool else share
        for key, value in found.items():
            values.setdefault(key, []).append(value)
        notes += [warning for warning in warnings if warning not in notes]
    pooled = pieces.ranks.once(lambda: _results(pool)) if pool else {}
    return {
        "name": row.name,
        "of": subject.of,
        "n": n,
        "n_seed": share,
        **about,
        "passes": subject.sampler.passes() if subject.sampler is not None else 0.0,
        "sampler": _settings(subject.sampler),
        "decode": subject.decode,
        "metrics": {key: _summary(series, pooled.get(key)) for key, series in values.items()},
        "notes": notes,
        "seconds": time.perf_counter() - began,
    }


def _under(name: str, progress: Progress) -> Progress:
    return lambda what, done, total: progress(name, done, total)


def _judge(
    judges: Judges, looks: Iterator[Look], pool: Judges, ranks: Ranks
) -> tuple[int, dict[str, float], list[str]]:
    """Number of images, the metrics' numbers, their reservations; the images are added to `pool` too.

    `looks` are what all ranks have seen, and every rank adds that; the first says what comes of it.
    """
    for metric in judges.values():
        metric.reset()
    n = 0
    for count, seen in looks:
        n += count
        for metrics in (judges, pool):
            for metric, each in zip(metrics.values(), seen, strict=bool(metrics)):
                metric.add(each)
    found, notes = ranks.once(lambda: (_results(judges), [note for m in judges.values() for note in m.notes()]))
    return n, found, notes


def _results(judges: Judges) -> dict[str, float]:
    """All numbers of all metrics."""
    found: dict[str, float] = {}
    for name, metric in judges.items():
        numbers = metric.result()
        if clash := sorted(set(numbers) & set(found)):
            raise RecipeError(f"eval.metrics: `{name}` repeats the number `{clash[0]}`; give one of the two a `name`")
        found |= numbers
    return found


def _stream(row: Row, pieces: Pieces, plan: Plan, seed: int, split: str, progress: Progress, start: int) -> Stream:
    if row.subject.of in ("teacher", "student"):
        return samples(row.subject, pieces, plan.samples, seed, plan.batch_size, progress, start)
    size = len(source_of(pieces, split))
    if row.subject.of == "real":
        return real_images(pieces, split, torch.arange(size), plan.batch_size, progress, row.name, pieces.ranks, start)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))  # a split may be sorted by class
    some = order[: plan.samples * len(plan.seeds)].sort().values
    return reconstructions(pieces, split, some, plan.batch_size, progress, row.name, start)


def _halves(pieces: Pieces, plan: Plan, seed: int, progress: Progress) -> tuple[Judges, Callable[[int], Stream]]:
    """Fresh metrics whose reference is one half of the training split (at most a row's images), and the other half.

    Without metrics that have a reference of their own.
    """
    total = len(pieces.data.reference())
    size = min(total // 2, plan.samples * len(plan.seeds))
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed_of(seed, -1)))
    judges = {name: metric for name, metric in pieces.metrics().items() if metric.compares_with != "file"}
    quiet: Progress = lambda what, done, total: None  # noqa: E731
    _feed_reference((judges,), real_images(pieces, "train", order[:size], plan.batch_size, quiet, "halves", ALONE))
    other = order[size : 2 * size]
    return judges, partial(real_images, pieces, "train", other, plan.batch_size, progress, "halves", pieces.ranks)


def _feed_reference(sets: Sequence[Judges], stream: Stream) -> None:
    for images, cond in stream:
        for judges in sets:
            for metric in judges.values():
                metric.reference(images, cond)


def _settings(sampler: Sampler | None) -> Json | None:
    if sampler is None:
        return None
    if isinstance(sampler, BaseModel):
        return sampler.model_dump(mode="json")
    return {"class": f"{type(sampler).__module__}.{type(sampler).__qualname__}", "settings": repr(sampler)}


def _summary(values: list[float], pooled: float | None) -> Json:
    """The value (of all images, or the seeds' mean where they are not pooled), spread and values of the seeds.

    Null where a number is not finite or cannot be had.
    """
    whole = all(map(math.isfinite, values))
    value = pooled if pooled is not None else statistics.fmean(values) if whole else math.nan
    return {
        "value": value if math.isfinite(value) else None,
        "sd": statistics.stdev(values) if whole and len(values) > 1 else None,
        "values": [v if math.isfinite(v) else None for v in values],
    }


def _read(path: Path) -> Json:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or not isinstance(value.get("rows"), list):
            raise ValueError("not an evaluation")
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it to evaluate anew") from error
    return value
