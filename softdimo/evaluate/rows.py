"""What the rows of the table are, and the images of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from softdimo.errors import DataError, RecipeError
from softdimo.kinds import Batch, Cond, Data, Metric, Sampler, Source, Teacher, Tokenizer
from softdimo.math.digest import seed_of
from softdimo.runs.ranks import ALONE, Ranks
from softdimo.shapes import Image

Progress = Callable[[str, int, int], None]
"""(what, images done, images in all)."""
Stream = Iterator[tuple[Image, Cond]]
ENOUGH = 500
"""Held-out images below which reconstructions are measured on the training split."""


@dataclass(frozen=True)
class Subject:
    """What one row measures. Samples of a network need `net` and `sampler`."""

    name: str
    of: Literal["real", "reconstruction", "teacher", "student"]
    net: Teacher | None = None
    sampler: Sampler | None = None
    decode: Literal["hard", "soft"] = "hard"
    """`hard` decodes sampled tokens; `soft` the expected codes of a one-step sampler."""
    split: Literal["train", "held_out"] = "held_out"
    """Whose images a reconstruction decodes."""
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The setting whose values this row and its neighbors measure, for the record."""


@dataclass(frozen=True)
class Pieces:
    """Everything that an evaluation needs, built."""

    data: Data
    """Images (or tokens, with a tokenizer) and the conditions to sample for."""
    metrics: Callable[[], Mapping[str, Metric]]
    """Makes the metrics, fresh (without images), by name. Feature networks may be shared between calls."""
    rows: Sequence[Subject]
    tokenizer: Tokenizer | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    forbidden: Mapping[str, str] = field(default_factory=dict)
    """Networks that took part in training (`network_digests`), by what they did there: none of them may judge."""
    ranks: Ranks = ALONE
    """Who shares the batches of a row."""
    text: str | None = None
    """Tells the text encoder of `data`, and its unconditional prompt, from others; None without one."""

    def need_tokenizer(self, row: str) -> Tokenizer:
        """The tokenizer. Raises RecipeError where there is none."""
        if self.tokenizer is None:
            raise RecipeError(f"eval.rows: `{row}` needs a tokenizer; add a `tokenizer:` section to the recipe")
        return self.tokenizer


def real_images(
    pieces: Pieces,
    split: str,
    index: Int[Tensor, "n"],
    batch_size: int,
    progress: Progress,
    what: str,
    ranks: Ranks,
    start: int = 0,
) -> Stream:
    """Images of a split at `index`, in batches; tokens are decoded. Raises DataError where there is neither.

    This stream and those below leave out the first `start` images, whole batches.
    """
    for batch in _batches(pieces, split, index, batch_size, progress, what, ranks, start):
        if batch.images is not None:
            yield batch.images, batch.cond
        elif batch.tokens is not None and pieces.tokenizer is not None:
            yield pieces.tokenizer.decode(batch.tokens, pieces.data.ready(batch.cond)), batch.cond
        else:
            raise DataError("the data set gives neither images, nor tokens for a tokenizer to decode")


def at_data(judges: Mapping[str, Metric]) -> bool:
    """Whether the data's real images are the standard of the metrics: one compares with them, or none with a file."""
    against = {metric.compares_with for metric in judges.values()}
    return "data" in against or "file" not in against


def reference_images(
    pieces: Pieces, judges: Mapping[str, Metric], n: int | None, batch_size: int, progress: Progress, trial: bool
) -> Stream:
    """The real images that metrics compare with; none where files stand for them; noise in a trial without any."""
    if not at_data(judges):
        return iter(())
    names = [f"`{name}`" for name, metric in judges.items() if metric.compares_with == "data"]
    if not pieces.data.has_images and not names:
        return iter(())
    if not pieces.data.has_images and not trial:
        raise DataError(
            f"eval.metrics: {', '.join(names)} compare with real images, but the data set has none; give a metric a "
            "`reference:` (a file of statistics or images; `softdimo statistics` makes one), or use data with images"
        )
    if not pieces.data.has_images:
        noise = torch.rand(n or batch_size, *pieces.data.image, generator=torch.Generator().manual_seed(0))
        return iter([(noise.to(pieces.device), pieces.data.conditions(len(noise)).to(pieces.device))])
    order = torch.randperm(len(pieces.data.reference()), generator=torch.Generator().manual_seed(0))
    return real_images(pieces, "train", order[:n].sort().values, batch_size, progress, "reference", ALONE)


def reconstruction_split(subject: Subject, pieces: Pieces) -> tuple[str, str]:
    """The split whose images are reconstructed, and what must be said about it (nothing for the held-out one)."""
    held_out = len(pieces.data.source("held_out"))
    if subject.split == "train":
        return "train", "reconstructions of training images, which flatters the tokenizer"
    if held_out >= ENOUGH:
        return "held_out", ""
    return "train", f"only {held_out} held-out images: training images were reconstructed, which flatters the tokenizer"


def reconstructions(
    pieces: Pieces, split: str, index: Int[Tensor, "n"], batch_size: int, progress: Progress, what: str, start: int = 0
) -> Stream:
    """decode(encode(image)) of this rank's batches of real images."""
    tokenizer = pieces.need_tokenizer(what)
    for batch in _batches(pieces, split, index, batch_size, progress, what, pieces.ranks, start):
        if batch.images is None:
            raise DataError("a reconstruction needs the images; this data set gives tokens only")
        yield tokenizer.decode(tokenizer.encode(batch.images), pieces.data.ready(batch.cond)), batch.cond


def samples(
    subject: Subject, pieces: Pieces, n: int, seed: int, batch_size: int, progress: Progress, start: int = 0
) -> Stream:
    """This rank's batches of n images of a network in evaluation mode for balanced conditions.

    The random numbers of a batch depend on the seed and the batch's place alone. Raises RecipeError where the network,
    the sampler or the tokenizer is missing.
    """
    net, sampler, tokenizer = subject.net, subject.sampler, pieces.need_tokenizer(subject.name)
    if net is None or sampler is None:
        raise RecipeError(f"eval.rows: `{subject.name}` samples a network, so it needs weights and a sampler")
    probs = getattr(sampler, "probs", None)
    if subject.decode == "soft" and probs is None:
        raise RecipeError(
            f"eval.rows: `{subject.name}` asks for a soft decode, which only a one-step sampler has; "
            "write `decode: hard`, or use the sampler `one_step`"
        )
    conditions = pieces.data.conditions(n)
    training = net.training
    net.eval()
    try:
        for first in pieces.ranks.mine(range(start, n, batch_size)):
            cond = pieces.data.ready(conditions[first : first + batch_size]).to(pieces.device)
            rng = torch.Generator(pieces.device).manual_seed(seed_of(seed, first))
            if subject.decode == "soft" and probs is not None:
                yield tokenizer.decode_soft(probs(net, cond, rng), cond), cond
            else:
                yield tokenizer.decode(sampler.sample(net, cond, rng), cond), cond
            progress(subject.name, first + len(cond), n)
    finally:
        net.train(training)


def source_of(pieces: Pieces, split: str) -> Source:
    """The split `train`, without augmented copies of its images, or `held_out`."""
    return pieces.data.reference() if split == "train" else pieces.data.source(split)


def _batches(
    pieces: Pieces,
    split: str,
    index: Int[Tensor, "n"],
    batch_size: int,
    progress: Progress,
    what: str,
    ranks: Ranks,
    start: int,
) -> Iterator[Batch]:
    if not len(index):
        raise DataError(f"{what}: the split `{split}` has no images; an evaluation needs training and held-out images")
    source = source_of(pieces, split)
    for first in ranks.mine(range(start, len(index), batch_size)):
        part = index[first : first + batch_size]
        yield source.get(part).to(pieces.device)
        progress(what, first + len(part), len(index))
