"""A text encoder of a few hundred numbers, a teacher that reads its encodings, and recipes with prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from softdimo.kinds import Cond, Context, Metric, Output, TextEncoder, TokenShape
from softdimo.spec import NetworkSpec, Spec
from softdimo.testing import TinyTeacher
from tests.fakes import distribution

WIDTH, LENGTH = 4, 5
PROMPTS = ("a red cube", "two birds", "a cat on a mat", "night sky", "an old boat", "snow", "a green door", "rain")


class Words(NetworkSpec):
    """A toy text encoder."""

    negative: str = "ugly"
    """The unconditional prompt."""
    half: bool = False
    """Give float16."""

    def ready(self) -> bool:
        """Random weights will do."""
        return True

    def build(self, context: Context) -> WordsNet:
        return WordsNet(self)


class WordsNet(TextEncoder):
    """Bytes, in a table. Counts the prompts that it encodes."""

    encoded: list[str]

    def __init__(self, spec: Words | None = None) -> None:
        super().__init__()
        spec = spec or Words()
        self.negative, self.dtype = spec.negative, torch.float16 if spec.half else torch.float32
        self.table = nn.Embedding(257, WIDTH)
        self.encoded = []

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.encoded += prompts
        cut = [list(prompt.encode()[:LENGTH]) for prompt in prompts]
        ids = torch.tensor([row + [256] * (LENGTH - len(row)) for row in cut], device=self.table.weight.device)
        states = self.table(ids).to(self.dtype)
        return {"states": states, "pooled": states.float().mean(1).to(self.dtype)}


class Reader(NetworkSpec):
    """A toy teacher that reads `states` and `pooled`."""

    reads: int = WIDTH
    """Width of both."""

    def ready(self) -> bool:
        """Random weights will do."""
        return True

    def build(self, context: Context) -> ReaderNet:
        assert context.tokens is not None
        return ReaderNet(context.tokens, self.reads)


class ReaderNet(TinyTeacher):
    """Adds what it reads to the embeddings. Refuses conditions that no text encoder has seen."""

    def __init__(self, shape: TokenShape, reads: int = WIDTH) -> None:
        super().__init__(shape, classes=1)
        self.read = nn.Linear(2 * reads, self.width)

    def forward(self, e: Tensor, cond: Cond, at: Tensor | None = None, features: Sequence[int] = ()) -> Output:
        said = torch.cat([cond.tensors["states"].mean(1), cond.tensors["pooled"]], 1)
        unlabelled = Cond(torch.full_like(cond.labels, -1))
        return super().forward(e + 3 * self.read(said)[:, None], unlabelled, at, features)


class Brightness(Spec):
    """A toy metric: the mean of the images, and how many of their conditions are prompts."""

    def build(self, context: Context) -> BrightnessMetric:
        return BrightnessMetric()


class BrightnessMetric(Metric):
    """Compares with nothing."""

    compares_with = "nothing"

    def reset(self) -> None:
        self.values, self.prompts = [], 0

    def update(self, img: Tensor, cond: Cond) -> None:
        self.values.append(img.mean((1, 2, 3)))
        self.prompts += len(cond.prompts)

    def result(self) -> dict[str, float]:
        return {"brightness": float(torch.cat(self.values).mean()), "prompts": float(self.prompts)}

    def fingerprint(self) -> dict[str, str | int | float]:
        return {"formula": "brightness/1"}


ENTRIES = {
    "softdimo.metric": {"toy_brightness": "tests.prompted:Brightness"},
    "softdimo.text_encoder": {"toy_words": "tests.prompted:Words"},
    "softdimo.teacher": {"toy_reader": "tests.prompted:Reader"},
}
STUDENT = """\
title: A student that reads
data: {use: prompts, path: prompts.txt, held_out: 0.3, size: 8, channels: 1}
tokenizer: {use: gray, levels: 4}
text_encoder: {use: toy_words}
teacher: {use: toy_reader}
hardware: {jobs: 1, accelerator: cpu}
train:
  iterations: 4
  batch_size: 2
  log_every: 1
  sample_every: 4
  sampler: {use: maskgit, steps: 2, guidance: {scale: 2.0}}
  terms: [{use: dimo, guidance: {scale: 3.0}}]
"""
MEASURED = """\
base: student.yaml
title: And is measured
eval:
  samples: 6
  seeds: [0, 1]
  batch_size: 2
  metrics: [{use: toy_brightness}]
  rows:
    - {name: student, of: student}
    - {name: teacher, of: teacher, sampler: {use: random_order, steps: 2, guidance: {scale: 2.0}}}
search:
  conditions: 2
  score: {use: connected}
  methods: [{name: best of 2, search: {use: best_of_n, n: 2}}]
"""


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The text encoder and the teacher, installed."""
    folder = distribution(tmp_path_factory.mktemp("readers"), "readers", ENTRIES)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def write(folder: Path, prompts: Sequence[str] = PROMPTS) -> Path:
    """The prompts and the recipes; returns that of a student."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    (folder / "measured.yaml").write_text(MEASURED, encoding="utf-8")
    (folder / "student.yaml").write_text(STUDENT, encoding="utf-8")
    return folder / "student.yaml"
