"""k-nearest-neighbor balls around features: what precision, recall, density and coverage are counted from.

Balls are closed, a radius is the distance to the k-th neighbor within the same set, the point itself excluded. The two
sets may differ in size. Distances are computed in chunks (float32, centered on the reference against cancellation), so
memory grows with `CHUNK` x set, not set x set.
"""

from __future__ import annotations

import statistics
import weakref
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Context, Features
from softdimo.shapes import Image
from softdimo.spec import LocalPath
from softdimo_plugins.metrics.extract import FeatureMetric, FeatureMetricSpec, Seen, extract
from softdimo_plugins.metrics.reference import count_images, digest, existing, read_images

CHUNK = 1024
"""Rows of a distance matrix that exist at a time."""


class NeighborSpec(FeatureMetricSpec):
    """Settings of a metric over k-nearest-neighbor balls."""

    k: Annotated[int, Field(ge=1)] = 5
    """Neighbor that sets a radius. Papers use 3 or 5; numbers of different k do not compare."""
    reference_samples: Annotated[int, Field(ge=2)] | None = 10_000
    """Real images used, drawn with a fixed seed; all when null, or where there are fewer. The size used is in the
    fingerprint."""
    samples: Annotated[int, Field(ge=2)] | None = 10_000
    """Generated images used, likewise. Recall and coverage depend on both sizes."""
    chunks: Annotated[int, Field(ge=1)] = 1
    """Consecutive equal parts of both sets that are compared apart and averaged. Halton-MaskGIT and ReDi publish means
    over 5 chunks, others numbers of the whole sets; recall and coverage differ much."""
    reference: LocalPath | None = None
    """An npz whose `arr_0` holds real images, uint8 [N H W 3] (`VIRTUAL_imagenet256_labeled.npz` of guided-diffusion
    has 10,000); the data's real images when null."""

    def arguments(self, context: Context) -> tuple[Features, int, int | None, int | None, str, int, Path | None]:
        """What `NeighborMetric` is made of. DataError where the reference is missing."""
        sizes = self.reference_samples, self.samples
        return self.network(context), self.k, *sizes, self.name, self.chunks, existing(self.reference)

    def smoke(self) -> Self:
        """Without the file, in one part, and with neighbors that two images have."""
        return self.model_copy(update={"reference": None, "chunks": 1, "k": 1})


class Counts(NamedTuple):
    """Who lies in whose ball."""

    balls: Int[Tensor, "F"]
    """Real balls that contain each generated sample."""
    covered: Bool[Tensor, "R"]
    """Whether each real ball contains a generated sample."""
    recalled: Bool[Tensor, "R"] | None
    """Whether each real sample lies in a generated ball; None where that was not asked for."""


def squared_distances(a: Float[Tensor, "A D"], b: Float[Tensor, "B D"]) -> Float[Tensor, "A B"]:
    """|a_i - b_j|^2 = |a_i|^2 + |b_j|^2 - 2 a_i . b_j, not below 0."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)[None]
    return norms.addmm_(a, b.T, alpha=-2).clamp_min_(0)


def squared_radii(x: Float[Tensor, "N D"], k: int) -> Float[Tensor, "N"]:
    """Squared distance of every sample to its k-th neighbor among the others.

    Raises DataError unless there are more than k samples.
    """
    if len(x) <= k:
        raise DataError(
            f"the {k}th neighbor needs more than {k} images, there are {len(x)}; lower `k` or raise `eval.samples`"
        )
    out = []
    for first in range(0, len(x), CHUNK):
        distances = squared_distances(x[first : first + CHUNK], x)
        rows = torch.arange(len(distances), device=x.device)
        distances[rows, rows + first] = torch.inf
        out.append(distances.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(out)


def count(
    real: Float[Tensor, "R D"], fake: Float[Tensor, "F D"], real_radii: Tensor, fake_radii: Tensor | None = None
) -> Counts:
    """Membership in closed balls of squared radii, over one pass of the [F R] distances."""
    balls = []
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    recalled = None if fake_radii is None else covered.clone()
    for first in range(0, len(fake), CHUNK):
        distances = squared_distances(fake[first : first + CHUNK], real)
        inside = distances <= real_radii
        balls.append(inside.sum(1))
        covered |= inside.any(0)
        if recalled is not None and fake_radii is not None:
            recalled |= (distances <= fake_radii[first : first + CHUNK, None]).any(0)
    return Counts(torch.cat(balls), covered, recalled)


class _Memo:
    """The last `Counts`, so that two metrics over the same features compute distances once.

    Metrics of one feature network hold the very same feature tensors (see `extract`), so identity is the key.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._parts: list[Tensor] = []
        self._counts: list[Counts] = []

    def get(self, key: tuple[Any, ...], parts: list[Tensor], recall: bool) -> list[Counts] | None:
        """The counts of the same settings and tensors, or None."""
        same = self._key == key and len(parts) == len(self._parts)
        if not self._counts or not same or any(a is not b for a, b in zip(parts, self._parts, strict=True)):
            return None
        return None if recall and self._counts[0].recalled is None else self._counts

    def put(self, key: tuple[Any, ...], parts: list[Tensor], counts: list[Counts]) -> None:
        """Remember."""
        self._key, self._parts, self._counts = key, list(parts), counts


_MEMO = _Memo()


_FILES: weakref.WeakKeyDictionary[Features, dict[str, list[Tensor]]] = weakref.WeakKeyDictionary()


def file_features(net: Features, path: Path) -> list[Float[Tensor, "B F"]]:
    """Features of the images in a file, in batches; each network looks at a file once."""
    known = _FILES.setdefault(net, {})
    key = digest(path)
    if key not in known:
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        known[key] = [extract(net, pixels.to(device).float() / 255)[0] for pixels in read_images(path)]
    return known[key]


class NeighborMetric(FeatureMetric):
    """Keeps features; subclasses turn `Counts` into numbers."""

    needs_recall: bool

    def __init__(
        self,
        net: Features,
        k: int,
        reference_samples: int | None,
        samples: int | None,
        name: str = "",
        chunks: int = 1,
        file: Path | None = None,
    ) -> None:
        super().__init__(net, name, file)
        self.k, self.reference_samples, self.samples, self.chunks = k, reference_samples, samples, chunks
        self._real: list[Tensor] = []
        self._fake: list[Tensor] = []
        self._prepared: list[tuple[Tensor, Tensor, Tensor]] = []

    def _reference(self, img: Image) -> None:
        self._real.append(extract(self.net, img)[0])
        self._prepared = []

    def reset(self) -> None:
        """Forget the generated images."""
        self._fake = []

    def add(self, seen: Seen) -> None:
        """Add generated images."""
        self._fake.append(seen.features)

    @abstractmethod
    def numbers(self, counts: Counts) -> dict[str, float]:
        """The numbers of one pair of sets."""

    def _result(self) -> dict[str, float]:
        found = [self.numbers(counts) for counts in self.counts()]
        return {key: statistics.fmean(each[key] for each in found) for key in found[0]}

    def counts(self) -> list[Counts]:
        """Memberships of the images so far, a chunk each. DataError where a set is empty or not larger than k."""
        if self.file is not None and not self._real:
            self._real = file_features(self.net, self.file)
        if not self._real or not self._fake:
            raise DataError("precision, recall, density and coverage need reference images and generated ones")
        key = (self.k, self.reference_samples, self.samples, self.chunks, len(self._real))
        parts = [*self._real, *self._fake]
        found = _MEMO.get(key, parts, self.needs_recall)
        if found is None:
            if not self._prepared:
                chosen = subsample(torch.cat(self._real), self.reference_samples)
                self._prepared = [self._prepare(real) for real in chosen.tensor_split(self.chunks)]
            fakes = subsample(torch.cat(self._fake), self.samples).tensor_split(self.chunks)
            found = [self._count(*pair) for pair in zip(self._prepared, fakes, strict=True)]
            _MEMO.put(key, parts, found)
        return found

    def _prepare(self, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centered features, squared radii, and the center."""
        real = real.float()
        center = real.mean(0)
        return real - center, squared_radii(real - center, self.k), center

    def _count(self, prepared: tuple[Tensor, Tensor, Tensor], fake: Tensor) -> Counts:
        real, radii, center = prepared
        fake = fake.float() - center
        return count(real, fake, radii, squared_radii(fake, self.k) if self.needs_recall else None)

    def fingerprint(self) -> dict[str, str | int | float]:
        """That of every metric over features, the settings of neighbors, and the numbers of images."""
        if self.file is not None:
            self.reference_size = count_images(self.file)
        return super().fingerprint()

    def _settings(self) -> dict[str, Any]:
        assert isinstance(self.reference_size, int)
        size = self.reference_size
        used = size if self.reference_samples is None else min(self.reference_samples, size)
        limit = "all" if self.samples is None else self.samples
        chunks = {"chunks": self.chunks} if self.chunks > 1 else {}
        return {"k": self.k, "reference_used": used, "samples_limit": limit, **chunks}


def subsample(x: Float[Tensor, "N D"], n: int | None) -> Float[Tensor, "M D"]:
    """n rows without replacement by a fixed seed, in their order; all rows where n is None or there are no more."""
    if n is None or len(x) <= n:
        return x
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]
    return x[order.sort().values.to(x.device)]
