"""A token cache on disk: shards of tokens and labels, and `index.json`, which says what they are and whose.

`softdimo tokenize` writes caches, the data set `tokens` reads them.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Int
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softdimo.errors import DataError
from softdimo.files import sha256
from softdimo.kinds import Batch, Cond, ImageShape, Tokenizer, TokenShape
from softdimo.math.digest import digest_json, digest_module
from softdimo.spec import Settings

INDEX = "index.json"
PLAN = "softdimo.plan"
"""Metadata of a shard: the digest of the plan that it belongs to."""
FORMAT = 1
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class Shard(Settings):
    """One file of a split."""

    file: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    """Its name, beside the index."""
    count: Positive
    """Samples."""
    bytes: Positive
    """Size of the file."""
    sha256: str
    """Hash of the file."""


class Split(Settings):
    """A split: samples in the order of the data's own indices, `shard_size` of them a shard."""

    count: Count
    """Samples."""
    shards: tuple[Shard, ...] = ()
    """All of its shards, once the cache is finished; none before."""


class Origin(Settings):
    """A component that the tokens depend on."""

    use: str
    """Its name."""
    digest: str
    """Digest of the tokenizer's weights, or fingerprint of the data."""
    settings: dict[str, Any]
    """Its settings, for people."""


class Index(Settings):
    """What a cache holds."""

    format: int = FORMAT
    softdimo: str
    """Version that wrote it."""
    tokenizer: Origin
    data: Origin
    image: ImageShape
    """Channels, height, width of the images."""
    tokens: TokenShape
    """rows, cols, G, V of a sample's tokens."""
    classes: tuple[str, ...]
    """Names of the classes."""
    reference: Count
    """Training samples that are no augmented copies of others; they come first."""
    shard_size: Positive
    """Samples a shard; the last one of a split may have fewer."""
    splits: dict[str, Split]

    def plan(self) -> dict[str, Any]:
        """What every shard depends on."""
        plain = self.model_dump(mode="json", exclude={"softdimo"})
        for component in (plain["tokenizer"], plain["data"]):
            component.pop("settings")
        for split in plain["splits"].values():
            split.pop("shards")
        return plain

    def digest(self) -> str:
        """That of the plan."""
        return digest_json(self.plan())

    @property
    def whole(self) -> bool:
        """Whether all shards are written."""
        return all(sum(s.count for s in split.shards) == split.count for split in self.splits.values())


def read_index(folder: Path) -> Index:
    """The index of a finished cache, whose files have the sizes that it names.

    DataError where there is none, or it is unfinished or damaged, or a shard is missing or of another size.
    """
    index = find_index(folder)
    if index is None:
        raise DataError(f"{folder} holds no token cache: there is no {INDEX}; {_remedy(folder)}")
    if not index.whole:
        raise DataError(
            f"{folder} holds an unfinished token cache; run the same `softdimo tokenize` again to finish it"
        )
    for split in index.splits.values():
        for shard in split.shards:
            path = folder / shard.file
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes, not {shard.bytes}"
                raise DataError(f"{path} {found}; delete what is left of it, and {_again()}")
    return index


def find_index(folder: Path) -> Index | None:
    """The index in a folder, finished or not; None where there is none. DataError where it is damaged."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(plain, dict) and plain.get("format", FORMAT) != FORMAT:
            raise DataError(f"{path} has the format {plain['format']}, and this softdimo reads {FORMAT}; {_again()}")
        return Index.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is damaged ({where}: {first['msg']}); delete it, and {_again()}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it, and {_again()}") from error


def verify_files(folder: Path, index: Index) -> None:
    """Hash every shard. DataError names the first that was changed."""
    for split in index.splits.values():
        for shard in split.shards:
            if sha256(folder / shard.file) != shard.sha256:
                raise DataError(f"{folder / shard.file} was changed after it was written; delete it, and {_again()}")


def refuse_another(folder: Path, index: Index, tokenizer: Tokenizer) -> None:
    """DataError where the tokens are not those of `tokenizer`; on `meta` its shape alone can tell."""
    theirs, mine = index.tokens, tokenizer.shape
    if theirs != mine:
        raise DataError(
            f"{folder} holds tokens of {_shape(theirs)}, and the recipe's tokenizer makes {_shape(mine)}; "
            f"they were made with `{index.tokenizer.use}`; {_remedy(folder)}"
        )
    if any(t.device.type == "meta" for t in tokenizer.state_dict().values()):
        return
    digest = digest_module(tokenizer)
    if digest != index.tokenizer.digest:
        raise DataError(
            f"{folder} holds tokens of another tokenizer: `{index.tokenizer.use}` with the weights "
            f"{index.tokenizer.digest[:12]}, and the recipe's has the weights {digest[:12]}; {_remedy(folder)}"
        )


def smallest(V: int) -> torch.dtype:
    """The smallest integer type that holds ids in [0, V)."""
    return torch.uint8 if V <= 2**8 else torch.int16 if V <= 2**15 else torch.int32


class ShardSource:
    """A split of a cache. Shards are mapped into memory when first asked for: what is not read stays on disk."""

    def __init__(self, folder: Path, index: Index, split: str) -> None:
        if split not in index.splits:
            raise DataError(f"no split {split!r}; {folder} has {' and '.join(index.splits)}")
        self.folder, self.index, self.split = folder, index, index.splits[split]
        self._mapped = lru_cache(maxsize=None)(self._map)

    def __len__(self) -> int:
        return self.split.count

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """Tokens and labels at `index`."""
        return Batch(self.cond(index), tokens=self._gather(index, 0))

    def cond(self, index: Int[Tensor, "B"]) -> Cond:
        """Labels at `index`."""
        return Cond(self._gather(index, 1))

    def _gather(self, index: Int[Tensor, "B"], part: int) -> Tensor:
        """Tokens (part 0) or labels (part 1) at `index`; DataError where they are none."""
        index = torch.as_tensor(index)
        places, rows = index // self.index.shard_size, index % self.index.shard_size
        found = {place: self._mapped(place)[part] for place in sorted(set(places.tolist()))}
        shape = self.index.tokens
        out = torch.empty(len(index), *((shape.L, shape.G) if part == 0 else ()), dtype=torch.int64)
        for place, stored in found.items():
            at = places == place
            out[at] = stored[rows[at]].long()
        what, limit = (("tokens", shape.V), ("labels", len(self.index.classes)))[part]
        if len(out) and not 0 <= int(out.min()) <= int(out.max()) < limit:
            told = f"{self.folder} holds {what} outside 0 to {limit - 1}"
            raise DataError(f"{told}; find what was changed with `softdimo tokenize ... --verify`")
        return out

    def _map(self, place: int) -> tuple[Tensor, Tensor]:
        """Tokens [n L G] and labels [n] of a shard."""
        shard = self.split.shards[place]
        tokens, labels, _ = read_shard(self.folder / shard.file)
        shape = self.index.tokens
        if tokens.shape != (shard.count, shape.L, shape.G) or labels.shape != (shard.count,):
            raise DataError(f"{self.folder / shard.file} is not what the index says; delete it, and {_again()}")
        return tokens, labels


def read_shard(path: Path) -> tuple[Tensor, Tensor, str]:
    """Tokens and labels of a shard, mapped into memory, and the digest of its plan. DataError where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            plan = (file.metadata() or {}).get(PLAN, "")
            return file.get_tensor("tokens"), file.get_tensor("labels"), plan
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable shard ({error}); delete it, and {_again()}") from error


def _shape(shape: TokenShape) -> str:
    return f"{shape.rows} x {shape.cols} x {shape.G} of {shape.V} classes"


def _again() -> str:
    return "run the `softdimo tokenize` that made the cache again: it makes what is missing"


def _remedy(folder: Path) -> str:
    return (
        "make one with `softdimo tokenize RECIPE data='{use: folder, path: IMAGES}' --out "
        f"{folder}`, where RECIPE has the same tokenizer"
    )
