"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): does a detector find the objects that the prompt asks for?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Self

from softdimo.errors import DataError
from softdimo.kinds import Context
from softdimo.spec import LocalPath
from softdimo_plugins.metrics.lines import Line, digest, read_lines
from softdimo_plugins.metrics.outside import Item, OutsideMetric, OutsideSpec, Scored

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RESULTS = "results.jsonl"


class Geneval(OutsideSpec):
    """`geneval`: mean over six tasks of the share of correct images; `geneval_<task>`: each of them.

    The official scorer needs a detector (Mask2Former of mmdet 2) in an environment of its own, so `command` is an
    adapter there: `benchmarks/geneval_adapter.py` calls the official script. The request has `layout: geneval`, and
    its `folder` is what that script reads (`00000/metadata.jsonl`, `00000/samples/0000.png`); the adapter puts what
    the script says into the file `results`. The benchmark draws four images of each of 553 prompts: four seeds.
    """

    metadata: LocalPath | None = None
    """The benchmark's evaluation_metadata.jsonl, whose prompts the data set asks for too. Null in trials only: then
    every prompt is one of a single object."""

    def build(self, context: Context) -> GenevalMetric:
        """The metric. PluginError without the program, DataError for metadata that are none."""
        return GenevalMetric(self)

    def smoke(self) -> Self:
        """A stand-in for the program, and any prompts."""
        return super().smoke().model_copy(update={"metadata": None})


class Sample(NamedTuple):
    """One image in the layout."""

    line: Line
    """Of its prompt."""
    number: int
    """Among the images of the prompt."""
    item: Item

    @property
    def file(self) -> str:
        """Where the scorer finds it."""
        return f"{self.line.place:05d}/samples/{self.number:04d}.png"

    @property
    def key(self) -> str:
        """What its score depends on."""
        return f"{self.item.digest} {digest([self.line])}"


class GenevalMetric(OutsideMetric):
    """The metric of `Geneval`."""

    formula = "geneval/1 mean-over-tasks"

    def __init__(self, spec: Geneval) -> None:
        super().__init__(spec)
        self.trial, self.lines = spec.metadata is None, read_lines(spec.metadata)
        for prompt, line in self.lines.items():
            if line.value.get("tag") not in TASKS:
                raise DataError(f"{spec.metadata}: the `tag` of {prompt!r} must be one of {', '.join(TASKS)}")
        self._about: dict[str, str | int | float] = {
            "prompts": len(self.lines),
            "metadata": digest(self.lines.values()),
        }

    def _settings(self) -> dict[str, str | int | float]:
        return dict(self._about)

    def samples(self, items: Sequence[Item]) -> list[Sample]:
        """Place and number of each image. DataError for a prompt that the benchmark does not ask."""
        found, numbers = [], Counter[str]()
        for item in items:
            prompt = (item.prompt or "").strip()
            if self.trial and prompt not in self.lines:
                value = {"tag": TASKS[0], "include": [], "prompt": prompt}
                self.lines[prompt] = Line(len(self.lines), json.dumps(value), value)
            if prompt not in self.lines:
                raise DataError(
                    f"geneval: {prompt!r} is none of the benchmark's prompts; let the data set ask for those in its "
                    "evaluation_metadata.jsonl, and for nothing else"
                )
            found.append(Sample(self.lines[prompt], numbers[prompt], item))
            numbers[prompt] += 1
        return found

    def _numbers(self, items: Sequence[Item]) -> dict[str, float]:
        scored, samples = Scored(self.store, self.program), self.samples(items)
        if new := {s.key: s for s in samples if s.key not in scored}:
            found = self._ask(list(new.values()))
            scored.add({key: found[s.file] for key, s in new.items()})
        told = [scored[s.key] | {"filename": s.file} for s in samples]
        if self.spec.keep is not None:
            self.kept(layout(samples) | {RESULTS: "".join(json.dumps(line) + "\n" for line in told).encode()})
        return scores((line["tag"], line["correct"]) for line in told)

    def _ask(self, samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
        """What the scorer says of each image, by its place in the layout."""
        images = [
            {"file": s.file, "prompt": s.line.value["prompt"], "number": s.number, "seed": s.item.seed}
            | {"metadata": s.line.value}
            for s in samples
        ]
        written = self.send(images, layout(samples), layout="geneval", results=f"../{RESULTS}").written
        if "results" not in written:
            raise self.program.fault(f"it ended well, but wrote no {RESULTS} to the path of the request's `results`")
        try:
            return read_results(written["results"].decode("utf-8"), {s.file: s.line.value for s in samples})
        except ValueError as error:
            raise self.program.fault(f"its {RESULTS}: {error}") from error

    def notes(self) -> tuple[str, ...]:
        """Says where prompts are missing."""
        asked = {prompt for _, prompt, _ in self._seen}
        if self.trial or len(asked) >= len(self.lines):
            return ()
        return (f"geneval: {len(asked)} of the benchmark's {len(self.lines)} prompts",)


def layout(samples: Sequence[Sample]) -> dict[str, str | bytes]:
    """The files that the scorer reads: images, and beside them the line of the metadata, as it is written."""
    lines = {f"{s.line.place:05d}/metadata.jsonl": s.line.text.encode() for s in samples}
    return lines | {s.file: s.item.file for s in samples}


def read_results(text: str, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The official scorer's lines by place in the layout: each has `filename`, `tag`, `prompt`, `correct`, `reason`.

    `wanted` are the metadata of the images that were sent. Raises ValueError where a line is of no image, or says
    something else of its metadata, where an image has no line or two, and where one is neither right nor wrong.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(filter(str.strip, text.split("\n")), 1):
        value = json.loads(line)
        named = isinstance(value, dict) and isinstance(value.get("filename"), str)
        file = "/".join(PurePosixPath(value["filename"]).parts[-3:]) if named else ""
        if file not in wanted:
            raise ValueError(f"line {number} is of no image that was sent: {line[:200]}")
        if file in found:
            raise ValueError(f"line {number}: {file} is scored twice")
        about = wanted[file]
        if (value.get("tag"), value.get("prompt")) != (about["tag"], about["prompt"]):
            raise ValueError(f"line {number}: {file} is of {about['tag']}, {about['prompt']!r}, but the line says else")
        if not isinstance(value.get("correct"), bool):
            raise ValueError(f"line {number}: `correct` must be true or false, not {value.get('correct')!r}")
        found[file] = value
    if missing := [file for file in wanted if file not in found]:
        raise ValueError(f"{len(missing)} of {len(wanted)} images have no line, {missing[0]} for one")
    return found


def scores(told: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Tasks and correctness of images -> the share of each task, and `geneval`, their mean (not that of images)."""
    images, right = Counter[str](), Counter[str]()
    for tag, correct in told:
        images[tag] += 1
        right[tag] += correct
    shares = {tag: right[tag] / images[tag] for tag in TASKS if images[tag]}
    return {"geneval": sum(shares.values()) / len(shares)} | {f"geneval_{tag}": s for tag, s in shares.items()}
