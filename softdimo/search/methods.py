"""Test-time search, methods side by side: score, held-out rewards, cost in forward-equivalents, wall time, pictures.

Every method sees the same conditions and, batch by batch, the same random starts, so differences are paired. A method
with iterations is followed by best-of-N at the same number of forward-equivalents: what the compute buys otherwise.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softdimo.evaluate.rows import Progress
from softdimo.files import write_json
from softdimo.kinds import Cond, Data, Found, Reward, Search, Teacher, Tokenizer
from softdimo.math.best import best_of
from softdimo.math.digest import seed_of
from softdimo.math.init import Init
from softdimo.math.rollout import categorical, start
from softdimo.runs.ranks import ALONE, Ranks
from softdimo.search.scoring import Decode, Generator, Scores, Start, decoded, decoder, look
from softdimo.shapes import Embedding, Image
from softdimo.strips import strip

Json = dict[str, Any]
Run = Callable[[Generator, Scores, Start, Cond, torch.Generator], Found]
"""`Search.run`."""
SHOWN = 8
"""Conditions in a picture."""


@dataclass(frozen=True)
class SearchPieces:
    """Everything that a comparison of searches needs, built."""

    net: Teacher
    """The one-step student, in evaluation mode."""
    tokenizer: Tokenizer
    init: Init
    data: Data
    """Gives the conditions."""
    score: Scores
    """What is optimized."""
    methods: Mapping[str, Search]
    held_out: Mapping[str, Reward] = field(default_factory=dict)
    """Rewards that are only measured."""
    ranks: Ranks = ALONE
    """Who shares the batches of conditions."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rows: int | None = None
    """Images in memory at once; all of a batch when None."""
    recompute: bool = False
    """Compute anew in the backward pass what the decoder would keep for it."""


def search(
    pieces: SearchPieces,
    folder: Path,
    *,
    conditions: int,
    batch_size: int = 16,
    seed: int = 0,
    lock: Json | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Json:
    """Compare the methods on `conditions` conditions; write search.json and search/<method>.png, return the former.

    The ranks of `pieces.ranks` share the batches, in which nothing depends on their number, and the first writes.
    `lock` tells the versions that search; it is kept beside the numbers.

    Rows: `one step, sampled` (tokens drawn from the student: what a user gets without a search), `one step, <decode>`
    (the first start of every search, decoded as the methods do), the methods, and after each method with iterations
    `best of N` at its forward-equivalents, unless the recipe has that itself. Scores are those of the images that the
    user gets; `gain` is the paired difference to `one step, <decode>`, `against` those of a method with iterations to
    best-of-N at its cost (mean, standard error, conditions where it is higher and lower). `trace[s][i]` is the mean
    best score over the first s + 1 starts and i iterations, `trace_passes[s][i]` what that costs. Where several rewards
    are optimized, `rewards` holds the mean of each, and `calibration` the part of `passes` that found their means and
    deviations.
    """
    run = _Comparison(pieces, conditions, batch_size, seed, progress)
    rows = [run.sampled()]
    for decode in dict.fromkeys(method.decode for method in pieces.methods.values()):
        rows.append(run.method(f"one step, {decode}", decode, _best(1, None), baseline=True))
    measured = {name: run.method(name, method.decode, method.run) for name, method in pieces.methods.items()}
    flat = {(_drawn(row), row["decode"]): row["name"] for row in (*rows, *measured.values()) if _flat(row)}
    for row in measured.values():
        rows.append(row)
        n, decode = _drawn(row), row["decode"]
        if _flat(row):
            continue
        if (n, decode) not in flat:
            flat[n, decode] = f"best of {n}, {decode}"
            rows.append(run.method(flat[n, decode], decode, _best(n, pieces.rows)))
        row["against"] = run.against(row["name"], flat[n, decode])
    pictures = {}
    for name, (labels, images) in run.pictures.items():
        heads = ["start", *(f"step {i}" for i in range(1, len(images[0]) - 1)), "winner"]
        picture = folder / "search" / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.png"
        strip(list(zip(labels, images, strict=True)), picture, heads, title=name)
        pictures[name] = picture.relative_to(folder).as_posix()
    result: Json = {"conditions": conditions, "seed": seed, "methods": rows, "pictures": pictures, "lock": lock or {}}
    if pieces.ranks.first:
        write_json(folder / "search.json", result)
    return result


def _drawn(row: Json) -> int:
    """Images that the search of a row costs, without those of the calibration."""
    return round(float(row["passes"]) - float(row.get("calibration", 0)))


def _flat(row: Json) -> bool:
    """Whether a row is of a search without iterations."""
    return len(row["trace"][0]) == 1


def _best(n: int, rows: int | None) -> Run:
    def run(generator: Generator, score: Scores, begin: Start, cond: Cond, rng: torch.Generator) -> Found:
        found = best_of(n, generator, score, begin, cond, rng, rows)
        return Found(found.e, found.score, found.trace[:, None], float(n))

    return run


class _Comparison:
    """Runs methods over the same batches."""

    def __init__(self, pieces: SearchPieces, n: int, batch_size: int, seed: int, progress: Progress) -> None:
        self.pieces, self.n, self.batch_size, self.seed, self.progress = pieces, n, batch_size, seed, progress
        self.conditions = pieces.data.conditions(n)
        self.score, self.held_out = pieces.score, pieces.held_out
        self.decodes: list[Decode] = [method.decode for method in pieces.methods.values()]
        self.measures: dict[tuple[Decode, int], Mapping[str, Tensor]] = {}
        self.plain: dict[Decode, Tensor] = {}
        self.got: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
        self.pictures: dict[str, tuple[list[str], list[Image]]] = {}
        pieces.net.eval()

    def batches(self, decode: Decode) -> Iterator[tuple[Cond, torch.Generator]]:
        """This rank's conditions and the batches' own generators, the same for every method."""
        for first in self.pieces.ranks.mine(range(0, self.n, self.batch_size)):
            cond = self.pieces.data.ready(self.conditions[first : first + self.batch_size]).to(self.pieces.device)
            if self.score.calibration and (decode, first) not in self.measures:
                before = cond.tensors.keys()
                measured = self.score.calibrated(
                    self.generator(decode), self.begin, cond, self.rng("pool", first), self.pieces.rows
                )
                self.measures[decode, first] = {k: t for k, t in measured.tensors.items() if k not in before}
            tensors = {**cond.tensors, **self.measures.get((decode, first), {})}
            yield replace(cond, tensors=tensors), self.rng(first)

    def rng(self, *place: object) -> torch.Generator:
        """The generator of a place."""
        return torch.Generator(self.pieces.device).manual_seed(seed_of(self.seed, *place))

    def generator(self, decode: Decode) -> Generator:
        """e_in -> image."""
        return decoder(self.pieces.net, self.pieces.tokenizer, decode, self.pieces.recompute)

    def begin(self, cond: Cond, rng: torch.Generator) -> Embedding:
        """A start: the student's own random input."""
        return start(self.pieces.net, cond, self.pieces.init, rng)[1]

    def sampled(self) -> Json:
        """One step with tokens drawn at temperature 1."""

        def looks() -> Iterator[_Seen]:
            for cond, rng in self.batches(self.decodes[0]):
                with torch.no_grad():
                    began = time.perf_counter()
                    logits = self.pieces.net(self.begin(cond, rng), cond).logits.float()
                    images = self.pieces.tokenizer.decode(categorical(logits, rng), cond)
                yield self.look(images, cond, time.perf_counter() - began, None)

        return self.tally("one step, sampled", looks()).row("one step, sampled", "sampled", None)

    def method(self, name: str, decode: Decode, run: Run, baseline: bool = False) -> Json:
        """One method over all conditions."""
        generator = self.generator(decode)

        def looks() -> Iterator[_Seen]:
            for cond, rng in self.batches(decode):
                began = time.perf_counter()
                found = run(generator, self.score, self.begin, cond, rng)
                images = decoded(generator, found.e, cond, self.pieces.rows)
                yield self.look(images, cond, time.perf_counter() - began, found)
                if found.path is not None and self.pieces.ranks.first and name not in self.pictures:
                    self.pictures[name] = self.picture(generator, found, images, cond)

        tally = self.tally(name, looks())
        watched = {key: torch.cat(parts) for key, parts in tally.held_out.items()}
        self.got[name] = torch.cat(tally.scores), watched
        row = tally.row(name, decode, None if baseline else self.plain[decode])
        if baseline:
            self.plain[decode] = torch.cat(tally.scores)
        elif self.score.calibration:
            row |= {"passes": row["passes"] + self.score.calibration, "calibration": self.score.calibration}
        return row

    def against(self, name: str, rival: str) -> Json:
        """Paired differences of one method to another."""
        mine, theirs = self.got[name], self.got[rival]
        watched = {key: _paired(values - theirs[1][key]) for key, values in mine[1].items()}
        return {"name": rival, "score": _paired(mine[0] - theirs[0]), "held_out": watched}

    def look(self, images: Image, cond: Cond, seconds: float, found: Found | None) -> _Seen:
        """Score one batch of delivered images; rewards outside the search do not count as its time."""
        _, scores, rewards, held_out = look(images, cond, self.score, self.held_out, self.pieces.rows)
        if found is None:
            return _Seen(scores, held_out, rewards, seconds)
        best = found.trace.double().cpu().cummax(0).values.cummax(1).values.sum(-1)
        return _Seen(scores, held_out, rewards, seconds, best, found.passes, found.screening)

    def tally(self, name: str, looks: Iterator[_Seen]) -> _Tally:
        """The batches of all ranks, in order."""
        tally = _Tally(self)
        for seen in self.pieces.ranks.in_order(looks):
            tally.add(seen, name)
        return tally

    def picture(self, generator: Generator, found: Found, winners: Image, cond: Cond) -> tuple[list[str], list[Image]]:
        """Labels, and for a few conditions the images of the winning start's iterations and the winner."""
        assert found.path is not None
        shown = cond[:SHOWN]
        rows = self.pieces.rows
        shots = [decoded(generator, e[:SHOWN], shown, rows) for e in found.path]
        steps = torch.stack([*shots, winners[:SHOWN]], 1)
        before = look(shots[0], shown, self.score, {}, rows).score
        classes = self.pieces.data.classes
        labels = []
        for i, label in enumerate(shown.labels.tolist()):
            what = shown.prompts[i] if shown.prompts else classes[label] if 0 <= label < len(classes) else str(label)
            labels.append(f"{what[:40]}: {before[i]:.2f} to {found.score[i]:.2f}")
        return labels, list(steps.cpu())


class _Seen(NamedTuple):
    """What one method did to one batch."""

    scores: Tensor
    held_out: dict[str, Tensor]
    rewards: dict[str, Tensor]
    seconds: float
    trace: Tensor | float = 0.0
    passes: float = 1.0
    screening: float = 0.0


class _Tally:
    """What one method did, summed over batches."""

    def __init__(self, of: _Comparison) -> None:
        self.of = of
        self.scores: list[Tensor] = []
        self.held_out: dict[str, list[Tensor]] = {name: [] for name in of.held_out}
        self.rewards: dict[str, list[Tensor]] = {name: [] for name in of.score.several}
        self.trace: Tensor | float = 0.0
        self.passes, self.screening, self.seconds, self.done = 0.0, 0.0, 0.0, 0

    def add(self, seen: _Seen, name: str) -> None:
        """Add a batch."""
        self.scores.append(seen.scores.cpu())
        for key, scores in seen.held_out.items():
            self.held_out[key].append(scores.cpu())
        for key, scores in seen.rewards.items():
            self.rewards[key].append(scores.cpu())
        self.trace = self.trace + (seen.trace.cpu() if isinstance(seen.trace, Tensor) else seen.trace)
        self.passes += seen.passes * len(seen.scores)
        self.screening = seen.screening
        self.seconds += seen.seconds
        self.done += len(seen.scores)
        self.of.progress(name, self.done, self.of.n)

    def row(self, name: str, decode: str, plain: Tensor | None) -> Json:
        """The method's row; `plain` are the scores that the gain is counted from."""
        scores = torch.cat(self.scores)
        trace = self.trace / self.done if isinstance(self.trace, Tensor) else scores.mean().view(1, 1)
        starts, points = trace.shape
        passes = self.passes / self.done
        step = ((passes - self.screening) / starts - 1) / (points - 1) if points > 1 else 0.0
        out: Json = {
            "name": name,
            "decode": decode,
            "passes": passes,
            "seconds": self.seconds,
            "score_mean": float(scores.mean()),
            "score_sem": _sem(scores),
            "held_out": {key: float(torch.cat(parts).mean()) for key, parts in self.held_out.items()},
            "held_out_sem": {key: _sem(torch.cat(parts)) for key, parts in self.held_out.items()},
            "trace": trace.tolist(),
            "trace_passes": [[self.screening + (s + 1) * (1 + i * step) for i in range(points)] for s in range(starts)],
        }
        if self.rewards:
            out["rewards"] = {key: float(torch.cat(parts).mean()) for key, parts in self.rewards.items()}
        if plain is not None:
            out |= {"gain_mean": float((scores - plain).mean()), "gain_sem": _sem(scores - plain)}
        return out


def _paired(differences: Float[Tensor, "n"]) -> Json:
    higher, lower = int((differences > 0).sum()), int((differences < 0).sum())
    return {"mean": float(differences.mean()), "sem": _sem(differences), "higher": higher, "lower": lower}


def _sem(values: Float[Tensor, "n"]) -> float | None:
    """Standard error of the mean; null for one value."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
