"""Test-time search for given conditions: of each the start, every step and the winner, in a folder that goes on.

    OUT/report.html                      everything on one page
    OUT/search.json                      settings, budget, every condition's result
    OUT/scores.csv, traces.csv           a line per image shown, a line per point evaluated
    OUT/conditions/KEY/start.png ...     pictures, and result.json, which is written last: what has one is done

What a condition gets depends on the settings, the seed and the condition alone, not on the conditions it is searched
with, their order, or how many go through the networks at once: it draws from a generator of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor

from softdimo.errors import CheckpointError, SoftdimoError
from softdimo.files import write_json
from softdimo.kinds import Cond, Data, Found, Reward, Search, Teacher, Tokenizer
from softdimo.math.best import best_of
from softdimo.math.digest import seed_of
from softdimo.math.init import Init
from softdimo.math.rollout import start
from softdimo.runs.ranks import ALONE, Ranks
from softdimo.search.scoring import Looked, Scores, decoded, decoder, look
from softdimo.search.wanted import Wanted, cond
from softdimo.shapes import Embedding
from softdimo.strips import save, to_uint8

Json = dict[str, Any]
CONDITIONS, RESULT = "conditions", "result.json"
_PLACE = "search.place"
"""Name in `Cond.tensors`: the place [B] of a condition in its batch, which says whose generator draws its start."""


@dataclass(frozen=True)
class Searcher:
    """A search, built, and the student that it is for."""

    net: Teacher
    """The one-step student, in evaluation mode."""
    tokenizer: Tokenizer
    init: Init
    data: Data
    """Encodes prompts."""
    score: Scores
    method: Search
    held_out: Mapping[str, Reward] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 16
    """Conditions that are searched side by side."""
    rows: int | None = None
    """Images in memory at once; all of a batch when None."""
    recompute: bool = False
    """Compute anew in the backward pass what the decoder would keep for it."""
    compare: bool = False
    """Also draw as many images as the search costs, and keep the best."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ranks: Ranks = ALONE
    """Who shares the batches."""

    def run(self, wanted: Sequence[Wanted], folder: Path, found: Any = lambda wanted, result: None) -> None:
        """Search for those that `folder` has no whole result of; each is on the disk as soon as its batch is done.

        `found(wanted, result)` hears of each. SoftdimoError where the device has too little memory.
        """
        self.net.eval()
        todo = self.ranks.agree([each for each in wanted if not self.done(each, folder)])
        for first in self.ranks.mine(range(0, len(todo), self.batch_size)):
            batch = todo[first : first + self.batch_size]
            try:
                _Batch(self, batch).write(folder, found)
            except torch.OutOfMemoryError as error:
                raise SoftdimoError(
                    f"the device's memory is full, with {len(batch)} conditions and {self.rows or 'all'} images at "
                    "once: set search.rows (to 4, say), lower search.batch_size, or set search.checkpoint=true"
                ) from error

    def done(self, wanted: Wanted, folder: Path) -> bool:
        """Whether a condition has its result, with the comparison if one is wanted."""
        result = read_result(folder / CONDITIONS / wanted.key)
        return result is not None and (not self.compare or "best_of_n" in result["shown"])


def read_result(folder: Path) -> Json | None:
    """What was found for one condition; None where the search for it has not ended. CheckpointError: damaged."""
    file = folder / RESULT
    if not file.is_file():
        return None
    try:
        result: Json = json.loads(file.read_text(encoding="utf-8"))
        return result | {"shown": dict(result["shown"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}); delete {folder}, and run the same command again"
        ) from error


class _Batch:
    """Conditions side by side: calibration, search, comparison, pictures."""

    def __init__(self, of: Searcher, wanted: Sequence[Wanted]) -> None:
        self.of, self.wanted = of, wanted
        self.generator = decoder(of.net, of.tokenizer, of.method.decode, of.recompute)
        ready = of.data.ready(cond(wanted)).to(of.device)
        place = {_PLACE: torch.arange(len(wanted), device=of.device)}
        self.cond = replace(ready, tensors={**ready.tensors, **place})
        self.rngs: list[torch.Generator] = []

    def begin(self, cond: Cond, rng: torch.Generator) -> Embedding:
        """A start: the student's own random input, of each condition's own generator."""
        net, init = self.of.net, self.of.init
        places = cond.tensors[_PLACE].tolist()
        return torch.cat([start(net, cond[i : i + 1], init, self.rngs[place])[1] for i, place in enumerate(places)])

    def seeded(self, purpose: str) -> torch.Generator:
        """Turn every condition's generator back to the beginning; returns one for whatever else a search draws."""
        self.rngs = [self._rng(each.key, purpose) for each in self.wanted]
        return self._rng(*(each.key for each in self.wanted), purpose)

    def _rng(self, *place: object) -> torch.Generator:
        return torch.Generator(self.of.device).manual_seed(seed_of(self.of.seed, *place))

    def write(self, folder: Path, found: Any) -> None:
        """Search, and write every condition's folder."""
        of, began = self.of, time.perf_counter()
        c = of.score.calibrated(self.generator, self.begin, self.cond, self.seeded("pool"), of.rows)
        best = of.method.run(self.generator, of.score, self.begin, c, self.seeded("start"))
        seconds = time.perf_counter() - began
        B, first = len(c), self.begin(c, self.seeded("start"))
        shown = {"one_step": self.look(first, c)}
        path = best.path if best.path is not None else best.e[None]
        for i, e in enumerate(path[: None if best.path is not None else 0]):
            shown["start" if i == 0 else f"step_{i}"] = self.look(e, c)
        shown["winner"] = self.look(best.e, c)
        spent = (torch.full((B,), best.passes) if best.spent is None else best.spent).tolist()
        if of.compare:
            shown["best_of_n"] = self.look(self.best(spent, c), c)
        measured = list(of.score.statistics(c)) or [{}] * B
        for i, each in enumerate(self.wanted):
            winner, trace = _winner(best, i), _trace(best, i)
            steps = len(trace["score"][winner["start"]])
            own = {name: looked for name, looked in shown.items() if _step(name) < steps}
            result: Json = {
                "text": each.text, "label": each.label, "turn": each.turn, "key": each.key,
                "budget": {"search": spent[i], "screening": best.screening, "calibration": of.score.calibration,
                           "total": spent[i] + of.score.calibration},
                "best_of": round(spent[i]) if of.compare else None,
                "seconds": round(seconds / B, 4), "batch": B, "units": measured[i], "trace": trace, "winner": winner,
                "shown": {name: looked.row(i) for name, looked in own.items()},
            }  # fmt: skip
            home = folder / CONDITIONS / each.key
            for name, looked in own.items():
                save(_picture(looked.images[i]), home / f"{name}.png", f"{each.text}: {name.replace('_', ' ')}")
            write_json(home / RESULT, result)
            found(each, result)

    def look(self, e: Embedding, cond: Cond) -> Looked:
        """Images of embeddings and all their rewards."""
        images = decoded(self.generator, e, cond, self.of.rows)
        return look(images, cond, self.of.score, self.of.held_out, self.of.rows)

    def best(self, spent: Sequence[float], cond: Cond) -> Embedding:
        """The best of as many starts as each condition's search has cost; its own first start is among them."""
        out: dict[int, Embedding] = {}
        numbers = [round(s) for s in spent]
        for n in set(numbers):
            rng = self.seeded("start")
            at = torch.tensor([i for i, m in enumerate(numbers) if m == n], device=cond.labels.device)
            found = best_of(n, self.generator, self.of.score, self.begin, cond[at], rng, self.of.rows)
            out |= dict(zip(at.tolist(), found.e, strict=True))
        return torch.stack([out[i] for i in range(len(numbers))])


def _step(name: str) -> int:
    """Which step a picture is of; 0 for those that are of none."""
    return int(name.removeprefix("step_")) if name.startswith("step_") else 0


def _trace(found: Found, i: int) -> Json:
    """Every point of one condition: `score[start][iteration]`, the same of each reward, points of each start."""

    def rows(trace: Tensor) -> list[list[float]]:
        lengths = [trace.shape[1]] * len(trace) if found.points is None else found.points[:, i].tolist()
        return [row[:n] for row, n in zip(trace[:, :, i].double().cpu().tolist(), lengths, strict=True)]

    return {"score": rows(found.trace), "rewards": {name: rows(trace) for name, trace in found.rewards.items()}}


def _winner(found: Found, i: int) -> Json:
    """Which start won, and at which of its points."""
    where = int(found.trace[:, :, i].flatten().argmax())
    return {"start": where // found.trace.shape[1], "iteration": where % found.trace.shape[1]}


def _picture(image: Tensor) -> PILImage.Image:
    """[C H W] as a picture of its own size."""
    return PILImage.fromarray(to_uint8(image).permute(1, 2, 0).squeeze(-1).contiguous().numpy())
