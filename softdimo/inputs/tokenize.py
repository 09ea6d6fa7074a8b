"""`softdimo tokenize`: a recipe's images -> a token cache, shard by shard; a run that was stopped goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor

from softdimo import __version__
from softdimo.build import Components, needs_weights
from softdimo.errors import DataError
from softdimo.files import atomic, sha256, sweep, write_json
from softdimo.inputs import shards
from softdimo.inputs.shards import Index, Origin, Shard, ShardSource, Split
from softdimo.kinds import Batch, Source, Tokenizer
from softdimo.math.digest import digest_module
from softdimo.recipe import Loaded
from softdimo.run import start_session
from softdimo.runs.folder import RunFolder
from softdimo.runs.ranks import Ranks
from softdimo.spec import Spec

Say = Callable[[str], None]
SPLITS = ("train", "held_out")
SAMPLE, LARGE_SAMPLE = 64, 1024
"""Images that are encoded again to check a cache: after it is written, and with `--verify`."""
AGREE = 0.99
"""Part of a sample's tokens that must come out the same. Sums depend on the batch in their last bits, and a token
between two codes may fall either way; tokens of other images, or of another tokenizer, agree by chance alone."""


def tokenize(
    loaded: Loaded,
    out: Path,
    *,
    verify: bool = False,
    batch_size: int = 64,
    shard_size: int = 2**15,
    say: Say = print,
) -> Index:
    """Encode both splits of a recipe's data with its tokenizer into the folder `out`; returns the cache's index.

    Shards that are there already stay. Tokens are computed in float32, as they are for data that is kept in memory, on
    the recipe's devices; ranks share the shards. Some images are then encoded again and compared with the cache;
    `verify` also hashes every shard, and compares more of them.

    Raises:
        RecipeError, PluginError, WeightsError: there is no tokenizer, or it has no weights.
        DataError: the data has no images, or conditions other than labels; `out` holds another cache, which then says
            what differs, or a damaged one.
    """
    session = start_session(loaded, Path("runs"), say=say)
    folder = RunFolder(out)
    with session.inside(folder, "again"), torch.inference_mode():
        with torch.inference_mode(False):  # weights may have to be trained first
            work = _prepare(loaded, session.parts(loaded), out, batch_size, shard_size)
        if session.ranks.first:
            sweep(out)
            work.begin()
        session.fabric.barrier("index")
        index = work.finish(session.ranks, session.say)
        session.fabric.barrier("shards")
        if session.ranks.first:
            work.check(index, verify, session.say)
        session.fabric.barrier("checked")
    return index


def _prepare(loaded: Loaded, parts: Components, out: Path, batch_size: int, shard_size: int) -> _Work:
    """The plan, and what it takes."""
    recipe, data = loaded.recipe, parts.given
    if not data.has_images:
        raise DataError(f"the data `{recipe.data.use}` has no images to encode; give data=... that has")
    needs_weights(recipe.tokenizer, "the tokenizer")
    tokenizer = parts.require_tokenizer()
    assert recipe.tokenizer is not None
    sources = {split: data.source(split) for split in SPLITS}
    plan = Index(
        softdimo=__version__,
        tokenizer=_origin(recipe.tokenizer, digest_module(tokenizer)),
        data=_origin(recipe.data, data.fingerprint()),
        image=data.image,
        tokens=tokenizer.shape,
        classes=data.classes,
        reference=len(data.reference()),
        shard_size=shard_size,
        splits={split: Split(count=len(source)) for split, source in sources.items()},
    )
    return _Work(out, plan, sources, tokenizer, parts.device, batch_size)


def _origin(spec: Spec, digest: str) -> Origin:
    return Origin(use=spec.use, digest=digest, settings=spec.model_dump(mode="json", by_alias=True))


@dataclass
class _Work:
    """A cache in the making."""

    out: Path
    plan: Index
    sources: dict[str, Source]
    tokenizer: Tokenizer
    device: torch.device
    batch_size: int

    def begin(self) -> None:
        """Leave the plan in the folder; refuse a folder with another one."""
        there = shards.find_index(self.out)
        if there is None:
            write_json(self.out / shards.INDEX, self.plan.model_dump(mode="json"))
        elif there.digest() != self.plan.digest():
            told = "\n  ".join(_differences(there.plan(), self.plan.plan()))
            raise DataError(f"{self.out} holds another token cache; give another --out, or delete it\n  {told}")

    def finish(self, ranks: Ranks, say: Say) -> Index:
        """Write the shards that are not there, and then the index with all of them."""
        places = [(s, i) for s, n in self.plan.splits.items() for i in range(-(-n.count // self.plan.shard_size))]
        mine = [places[i] for i in ranks.mine(range(len(places)))]
        missing = [place for place in mine if not self._there(*place)]
        progress = _Progress(sum(len(self._rows(*place)) for place in missing), ranks.world, say)
        known = {s.file: s for split in self._known() for s in split.shards}

        def made() -> Iterator[dict[str, Any]]:
            for split, i in mine:
                path = self._path(split, i)
                if (split, i) in missing:
                    self._write(split, i, progress)
                entry = known.get(path.name)
                if entry is None or (split, i) in missing or entry.bytes != path.stat().st_size:
                    count, size = len(self._rows(split, i)), path.stat().st_size
                    entry = Shard(file=path.name, count=count, bytes=size, sha256=sha256(path))
                yield entry.model_dump()

        found = [Shard.model_validate(entry) for entry in ranks.in_order(made())]
        whole = {name: split.model_copy(update={"shards": ()}) for name, split in self.plan.splits.items()}
        for (split, _), shard in zip(places, found, strict=True):
            whole[split] = whole[split].model_copy(update={"shards": (*whole[split].shards, shard)})
        index = self.plan.model_copy(update={"splits": whole})
        if ranks.first:
            write_json(self.out / shards.INDEX, index.model_dump(mode="json"))
        return index

    def check(self, index: Index, verify: bool, say: Say) -> None:
        """Encode a sample of images again. DataError where the cache holds something else."""
        shards.read_index(self.out)
        if verify:
            shards.verify_files(self.out, index)
        same = total = 0
        for split, source in self.sources.items():
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
            some = order[: LARGE_SAMPLE if verify else SAMPLE].sort().values
            cache = ShardSource(self.out, index, split)
            for rows, (tokens, labels) in zip(
                torch.split(some, self.batch_size), self._encoded(source, some), strict=True
            ):
                kept = cache.get(rows)
                if kept.tokens is None or not torch.equal(kept.cond.labels, labels.long()):
                    raise DataError(f"{self.out} holds other labels than the data; delete it, and make it again")
                same += int((kept.tokens == tokens).sum())
                total += tokens.numel()
        if same < AGREE * total:
            raise DataError(
                f"{self.out} holds other tokens than its data and tokenizer make: of {total} that were computed again "
                f"{same} are the same; delete it, and make it again"
            )
        hashed = "every shard has its hash, and " if verify else ""
        say(f"{self.out}: {hashed}{same} of {total} tokens that were computed again are the same")

    def _known(self) -> Iterable[Split]:
        there = shards.find_index(self.out)
        return () if there is None else there.splits.values()

    def _path(self, split: str, place: int) -> Path:
        return self.out / f"{split}-{place:05d}.safetensors"

    def _rows(self, split: str, place: int) -> range:
        size = self.plan.shard_size
        return range(place * size, min((place + 1) * size, self.plan.splits[split].count))

    def _there(self, split: str, place: int) -> bool:
        """Whether a shard is written. DataError where it is damaged, or belongs to another cache."""
        path = self._path(split, place)
        if not path.is_file():
            return False
        tokens, _, plan = shards.read_shard(path)
        if plan != self.plan.digest() or len(tokens) != len(self._rows(split, place)):
            raise DataError(f"{path} belongs to another token cache; give another --out, or delete it")
        return True

    def _write(self, split: str, place: int, progress: _Progress) -> None:
        """Encode and write one shard. Its batches begin with it, so they are the same in every run."""
        tokens, labels = [], []
        for t, y in self._encoded(self.sources[split], torch.tensor(self._rows(split, place))):
            tokens.append(t)
            labels.append(y)
            progress.add(len(y))
        whole = {"tokens": torch.cat(tokens), "labels": torch.cat(labels)}
        with atomic(self._path(split, place)) as temporary:
            save_file(whole, temporary, metadata={shards.PLAN: self.plan.digest()})

    def _encoded(self, source: Source, rows: Int[Tensor, "n"]) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens [b L G] and labels [b] of batches, in their smallest types; images are read one batch ahead."""
        shape, ids = self.tokenizer.shape, shards.smallest(len(self.plan.classes))
        for real in _ahead(source, torch.split(rows, self.batch_size)):
            if real.images is None or real.cond.prompts or real.cond.tensors:
                raise DataError("a token cache takes images with class labels, and this data gives something else")
            tokens = self.tokenizer.encode(real.images.to(self.device))
            yield tokens.to("cpu", shards.smallest(shape.V)), real.cond.labels.to("cpu", ids)


def _ahead(source: Source, batches: Iterable[Tensor]) -> Iterator[Batch]:
    """The batches in order, while a thread gets the next one."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for rows in batches:
            coming = pool.submit(source.get, rows)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """What two plans say differently, by key."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(k for k in here if k not in there)]:
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif there != here:
        yield f"{path}: {str(there)[:60]} there, {str(here)[:60]} here"


class _Progress:
    """Says now and then how far it is; `total` images are this rank's."""

    def __init__(self, total: int, world: int, say: Say, every: float = 10.0) -> None:
        self.total, self.world, self.say, self.every = total, world, say, every
        self.done, self.began = 0, time.monotonic()
        self.said = self.began

    def add(self, images: int) -> None:
        """More images are encoded."""
        self.done += images
        now = time.monotonic()
        if now - self.said < self.every:
            return
        self.said = now
        rate = self.done / (now - self.began)
        left = int((self.total - self.done) / rate)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        shown = f"{self.done * self.world}/{self.total * self.world} images"
        self.say(f"tokenizing: {shown}, {rate * self.world:.0f} images/s, {clock} left")
