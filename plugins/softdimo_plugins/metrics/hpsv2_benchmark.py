"""The benchmark of HPSv2 (Wu et al. 2023, arXiv 2306.09341): 800 prompts in each of four styles, one image each."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal, NamedTuple, Self

import torch
from jaxtyping import Int, UInt8
from pydantic import Field, model_validator
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Cond, Context, Metric, Reward, rated
from softdimo.shapes import Image, PerSample
from softdimo.spec import LocalPath, Spec, component
from softdimo_plugins.imaging import Rule, to_bytes, to_range
from softdimo_plugins.metrics.kept import Store, decoded, encoded
from softdimo_plugins.metrics.rated import identity, prompts_of

STYLES = ("anime", "concept-art", "paintings", "photo")
CHUNK = 80
"""Images whose mean the official script takes before that of a style: ten chunks where a style is whole."""


class HPSv2Benchmark(Spec):
    """`hps_v2.1` (or `hps_v2.0`): mean score of all images; `hps_v2.1_<style>`: of a style, the mean of chunks of 80.

    As the official script has it: images are JPEG files, as Pillow saves them, and scores are 100 times a cosine. It
    computes in half precision, this in single. The two versions are different networks, on different scales.
    """

    reward: Annotated[Spec, component("reward")]
    """What scores an image and its prompt: `{use: hpsv2, version: '2.1', weights: ...}`."""
    version: Literal["2.0", "2.1"] = "2.1"
    """The reward's version, for the numbers' names."""
    scale: float = 100.0
    """What the reward's numbers are multiplied with; the official script prints 100 times a cosine."""
    prompts: LocalPath | None = None
    """The folder of the benchmark's prompts: anime.json, concept-art.json, paintings.json, photo.json, lists of text.
    The data set asks for those, too. Null in trials only: then every prompt is one of `photo`."""
    quality: Annotated[int, Field(ge=1, le=95)] = 75
    """Of JPEG; Pillow's default."""
    uint8: Rule = "truncate"
    """How an image in [0, 1] becomes bytes, see `inception`; `truncate` is what Di[M]O's code does."""
    keep: LocalPath | None = None
    """A folder that gets one for each row (and seed), as the official script reads it: `photo/00000.jpg`."""
    name: str = ""
    """Prefix of the numbers' names."""

    @model_validator(mode="after")
    def _one_version(self) -> Self:
        theirs = getattr(self.reward, "version", self.version)
        if theirs != self.version:
            raise ValueError(f"the reward is of version {theirs}; write `version: '{theirs}'` for the benchmark too")
        return self

    def build(self, context: Context) -> HPSv2BenchmarkMetric:
        """The metric, without images yet. DataError where the prompts are none."""
        return HPSv2BenchmarkMetric(self, context.make(self.reward))

    def smoke(self) -> Self:
        """Any prompts, and no files."""
        return self.model_copy(update={"prompts": None, "keep": None})


class Seen(NamedTuple):
    """What is kept of a batch."""

    scores: PerSample
    prompts: Int[Tensor, "B"]
    """The first place of each image's prompt in the benchmark."""
    digests: UInt8[Tensor, "B 32"]
    """SHA-256 of each JPEG file."""


def read_prompts(folder: str) -> dict[str, tuple[str, ...]]:
    """Style -> its prompts. DataError where a file is missing or no list of text."""
    found = {}
    for style in STYLES:
        path = Path(folder).expanduser() / f"{style}.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot read the prompts {path} ({error}); `prompts` is the folder `benchmark` of the data set "
                "zhwang/HPDv2 on the Hugging Face hub"
            ) from error
        if not isinstance(value, list) or not value or not all(isinstance(prompt, str) for prompt in value):
            raise DataError(f"{path} must be a list of prompts")
        found[style] = tuple(value)
    return found


class HPSv2BenchmarkMetric(Metric):
    """Scores images as they are looked at; keeps numbers alone, and files where they are wanted."""

    seen_type = Seen
    compares_with = "nothing"
    formula = "hpsv2-benchmark/1"

    def __init__(self, spec: HPSv2Benchmark, reward: Reward) -> None:
        self.spec, self.reward = spec, reward
        lists = {STYLES[-1]: ("",)} if spec.prompts is None else read_prompts(spec.prompts)
        self.places = [(style, i) for style, prompts in lists.items() for i in range(len(prompts))]
        self.text = [prompt for prompts in lists.values() for prompt in prompts]
        self._same: dict[str, list[int]] = {}
        for place, prompt in enumerate(self.text):
            self._same.setdefault(prompt.strip(), []).append(place)
        self._row, self._seeds, self.store = "images", 1, Store()
        self.reset()

    def begin(self, row: str, seeds: tuple[int, ...], folder: Path) -> None:
        """Images of a row come next."""
        self._row, self._seeds = row, len(seeds)
        self.store = Store(folder / "images")

    def reset(self) -> None:
        """Forget the images."""
        self._seen: list[tuple[int, int, float, str]] = []
        self._turns = Counter[int]()

    def look(self, img: Image, cond: Cond) -> Seen:
        """Scores of images [B C H W] as JPEG files hold them. DataError for prompts that the benchmark has not."""
        firsts = [self._first(prompt) for prompt in prompts_of(cond, "hpsv2_benchmark")]
        pixels = to_bytes(to_range(img.detach().float(), self.spec.uint8)).cpu()
        files = [encoded(one, "JPEG", quality=self.spec.quality) for one in pixels]
        digests = [hashlib.sha256(file) for file in files]
        if self.spec.keep is not None:
            for file, digest in zip(files, digests, strict=True):
                self.store.put(f"{digest.hexdigest()}.jpg", file)
        seen = torch.stack([torch.from_numpy(decoded(file)).permute(2, 0, 1) for file in files])
        with torch.no_grad():
            scores = rated(self.reward, seen.to(img.device).float() / 255, cond)
        marks = torch.tensor([list(digest.digest()) for digest in digests], dtype=torch.uint8).view(-1, 32)
        return Seen(self.spec.scale * scores.cpu().double(), torch.tensor(firsts), marks)

    def _first(self, prompt: str) -> int:
        if self.spec.prompts is None:
            return 0
        if prompt.strip() not in self._same:
            raise DataError(
                f"hpsv2_benchmark: {prompt!r} is none of the prompts in {self.spec.prompts}; "
                "let the data set ask for those, and for nothing else"
            )
        return self._same[prompt.strip()][0]

    def add(self, seen: Seen) -> None:
        """Add scores; a prompt that stands in several places takes them in turn."""
        for score, first, digest in zip(*(x.tolist() for x in seen), strict=True):
            same = self._same[self.text[first].strip()]
            turn = self._turns[first]
            self._turns[first] += 1
            self._seen.append((turn // len(same), same[turn % len(same)], score, bytes(digest).hex()))

    def update(self, img: Image, cond: Cond) -> None:
        """Add generated images [B C H W]."""
        self.add(self.look(img, cond))

    def result(self) -> dict[str, float]:
        """Mean of all images, and of each style. DataError where there are none."""
        if not self._seen:
            raise DataError("hpsv2_benchmark: no images were given")
        if self.spec.keep is not None and self._seeds <= 1:
            self._lay_out(Path(self.spec.keep).expanduser() / self._row)
        by_style: dict[str, list[float]] = {style: [] for style in STYLES}
        for _, place, score, _ in sorted(self._seen):
            by_style[self.places[place][0]].append(score)
        prefix = f"{self.spec.name}/" if self.spec.name else ""
        return {prefix + key: value for key, value in scores(by_style, f"hps_v{self.spec.version}").items()}

    def _lay_out(self, target: Path) -> None:
        """The official folder, of the first image of each prompt."""
        names = {place: f"{style}/{i:05d}.jpg" for place, (style, i) in enumerate(self.places)}
        self.store.lay_out(target, {names[p]: f"{d}.jpg" for turn, p, _, d in self._seen if turn == 0})

    def fingerprint(self) -> dict[str, str | int | float]:
        """The formula, the reward and its weights, and the prompts."""
        digest = hashlib.sha256(json.dumps([self.places, self.text]).encode()).hexdigest()
        return {
            "formula": f"{self.formula} jpeg-{self.spec.quality}",
            "version": self.spec.version,
            "scale": self.spec.scale,
            "uint8": self.spec.uint8,
            "prompts": digest,
            **identity(self.spec.reward, self.reward),
        }

    def notes(self) -> tuple[str, ...]:
        """Says where prompts are missing."""
        asked = len({place for _, place, _, _ in self._seen})
        if self.spec.prompts is None or asked >= len(self.places):
            return ()
        return (f"hps_v{self.spec.version}: {asked} of the benchmark's {len(self.places)} prompts",)


def scores(by_style: Mapping[str, Sequence[float]], name: str) -> dict[str, float]:
    """Scores of images by style, in order -> `name`, the mean over images, and `name_<style>`, that over chunks."""
    every = [score for found in by_style.values() for score in found]
    out = {name: fmean(every)}
    for style, found in by_style.items():
        if found:
            chunks = [fmean(found[i : i + CHUNK]) for i in range(0, len(found), CHUNK)]
            out[f"{name}_{style}"] = fmean(chunks)
    return out
