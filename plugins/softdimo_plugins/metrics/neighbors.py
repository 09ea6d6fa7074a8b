"""k-nearest-neighbor balls around features: what precision, recall, density and coverage are counted from.

Balls are closed, a radius is the distance to the k-th neighbor within the same set, the point itself excluded. The two
sets may differ in size. Distances are computed in chunks (float32, centered on the reference against cancellation), so
memory grows with `CHUNK` x set, not set x set.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Context, Features
from softdimo.shapes import Image
from softdimo_plugins.metrics.extract import FeatureMetric, FeatureMetricSpec, Seen, extract

CHUNK = 1024
"""Rows of a distance matrix that exist at a time."""


class NeighborSpec(FeatureMetricSpec):
    """Settings of a metric over k-nearest-neighbor balls."""

    k: Annotated[int, Field(ge=1)] = 5
    """Neighbor that sets a radius. Papers use 3 or 5; numbers of different k do not compare."""
    reference_samples: Annotated[int, Field(ge=2)] = 10_000
    """Real images used, drawn with a fixed seed; all where there are fewer. The size used is in the fingerprint."""
    samples: Annotated[int, Field(ge=2)] = 10_000
    """Generated images used, likewise. Recall and coverage depend on both sizes."""

    def arguments(self, context: Context) -> tuple[Features, int, int, int, str]:
        """What `NeighborMetric` is made of."""
        return self.network(context), self.k, self.reference_samples, self.samples, self.name


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
        self._counts: Counts | None = None

    def get(self, key: tuple[Any, ...], parts: list[Tensor], recall: bool) -> Counts | None:
        """The counts of the same settings and tensors, or None."""
        same = self._key == key and len(parts) == len(self._parts)
        if self._counts is None or not same or any(a is not b for a, b in zip(parts, self._parts, strict=True)):
            return None
        return None if recall and self._counts.recalled is None else self._counts

    def put(self, key: tuple[Any, ...], parts: list[Tensor], counts: Counts) -> None:
        """Remember."""
        self._key, self._parts, self._counts = key, list(parts), counts


_MEMO = _Memo()


class NeighborMetric(FeatureMetric):
    """Keeps features; subclasses turn `Counts` into numbers."""

    needs_recall: bool

    def __init__(self, net: Features, k: int, reference_samples: int, samples: int, name: str = "") -> None:
        super().__init__(net, name)
        self.k, self.reference_samples, self.samples = k, reference_samples, samples
        self._real: list[Tensor] = []
        self._fake: list[Tensor] = []
        self._prepared: tuple[Tensor, Tensor, Tensor] | None = None

    def _reference(self, img: Image) -> None:
        self._real.append(extract(self.net, img)[0])
        self._prepared = None

    def reset(self) -> None:
        """Forget the generated images."""
        self._fake = []

    def add(self, seen: Seen) -> None:
        """Add generated images."""
        self._fake.append(seen.features)

    def counts(self) -> Counts:
        """Memberships of the images so far. Raises DataError where a set is empty or not larger than k."""
        if not self._real or not self._fake:
            raise DataError("precision, recall, density and coverage need reference images and generated ones")
        key = (self.k, self.reference_samples, self.samples, len(self._real))
        parts = [*self._real, *self._fake]
        found = _MEMO.get(key, parts, self.needs_recall)
        if found is None:
            if self._prepared is None:
                real = subsample(torch.cat(self._real).float(), self.reference_samples)
                center = real.mean(0)
                self._prepared = (real - center, squared_radii(real - center, self.k), center)
            real, radii, center = self._prepared
            fake = subsample(torch.cat(self._fake).float(), self.samples) - center
            found = count(real, fake, radii, squared_radii(fake, self.k) if self.needs_recall else None)
            _MEMO.put(key, parts, found)
        return found

    def _settings(self) -> dict[str, Any]:
        used = min(self.reference_samples, self.reference_size)
        return {"k": self.k, "reference_used": used, "samples_limit": self.samples}


def subsample(x: Float[Tensor, "N D"], n: int) -> Float[Tensor, "M D"]:
    """n rows without replacement by a fixed seed, in their order; all rows where there are no more than n."""
    if len(x) <= n:
        return x
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]
    return x[order.sort().values.to(x.device)]
