"""Any number that a program of yours makes of the images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, Self

from softdimo.kinds import Context
from softdimo.spec import LocalPath
from softdimo_plugins.metrics.lines import digest, read_lines
from softdimo_plugins.metrics.outside import Item, OutsideMetric, OutsideSpec, Scored
from softdimo_plugins.metrics.program import numbers


class Command(OutsideSpec):
    """Numbers of a program: it gets the images as PNG files, with prompts, seeds and metadata, and answers in JSON."""

    answers: Literal["set", "images"] = "set"
    """`set`: the program gives `numbers` of all images together, and is called for each seed's images and for all.
    `images`: it gives each image its own; their means are the numbers, and no image is sent twice."""
    metadata: LocalPath | None = None
    """A JSON Lines file of mappings with a `prompt`; the images of a prompt come with its mapping."""

    def build(self, context: Context) -> CommandMetric:
        """The metric. PluginError without the program, DataError for metadata that are none."""
        return CommandMetric(self)

    def smoke(self) -> Self:
        """A stand-in for the program, without metadata."""
        return super().smoke().model_copy(update={"metadata": None})


class CommandMetric(OutsideMetric):
    """The metric of `Command`."""

    formula = "command/1"

    def __init__(self, spec: Command) -> None:
        super().__init__(spec)
        self.answers = spec.answers
        self.metadata = read_lines(spec.metadata)

    def _settings(self) -> dict[str, str | int | float]:
        return {"answers": self.answers, "metadata": digest(self.metadata.values())}

    def _numbers(self, items: Sequence[Item]) -> dict[str, float]:
        if self.answers == "set":
            return dict(self._ask(items)["numbers"])
        scored = Scored(self.store, self.program)
        keys = [self._key(item) for item in items]
        if new := {key: item for key, item in zip(keys, items, strict=True) if key not in scored}:
            answer = self._ask(list(new.values()))["images"]
            scored.add({key: answer[_file(i)] for i, key in enumerate(new)})
        found: list[dict[str, float]] = [scored[key] for key in keys]
        if other := next((f for f in found if f.keys() != found[0].keys()), None):
            raise self.program.fault(f"its answer names {sorted(found[0])} for some images, {sorted(other)} for others")
        return {name: sum(f[name] for f in found) / len(found) for name in found[0]}

    def _key(self, item: Item) -> str:
        """What the score of an image may depend on."""
        line = self.metadata.get((item.prompt or "").strip())
        told = json.dumps([item.prompt, item.label, line and line.text])
        return f"{item.digest} {hashlib.sha256(told.encode()).hexdigest()}"

    def _ask(self, items: Sequence[Item]) -> dict[str, Any]:
        """The program's answer for these images: checked `numbers`, or checked `images`."""
        images = [
            {"file": _file(i), "prompt": item.prompt, "label": item.label, "seed": item.seed}
            | ({"metadata": line.value} if (line := self.metadata.get((item.prompt or "").strip())) else {})
            for i, item in enumerate(items)
        ]
        files: dict[str, str | bytes] = {_file(i): item.file for i, item in enumerate(items)}
        answer = self.send(images, files).answer
        if self.answers == "set":
            checked: dict[str, Any] = {"numbers": numbers(answer.get("numbers"), self.program, "`numbers`")}
        else:
            given = answer.get("images")
            each = given if isinstance(given, dict) else {}
            checked = {"images": {f: numbers(each.get(f), self.program, f"`images`, `{f}`") for f in files}}
        self.kept(files | {"request.json": _json({"images": images}), "answer.json": _json(answer)})
        return checked


def _file(i: int) -> str:
    return f"{i:05d}.png"


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()
