"""Fréchet distance between Gaussians fitted to features (FID is this with Inception's pool3)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from softdimo.errors import DataError
from softdimo.kinds import Context, Features
from softdimo.math.digest import digest_module
from softdimo.shapes import Image
from softdimo.spec import LocalPath
from softdimo_plugins.metrics.extract import FeatureMetric, FeatureMetricSpec, Seen, extract
from softdimo_plugins.metrics.reference import UNSTATED, Statistics, existing, read_statistics


class Frechet(FeatureMetricSpec):
    """`fd` = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2) of the features, in float64. Heusel et al. 2017."""

    reference: LocalPath | None = None
    """An npz with `mu` and `sigma` to compare with (of guided-diffusion, clean-fid, pytorch-fid, or of `softdimo
    statistics`); the data's real images when null."""

    def build(self, context: Context) -> FrechetMetric:
        """The metric, without images yet. DataError where the reference is missing."""
        return FrechetMetric(self.network(context), self.name, existing(self.reference))

    def smoke(self) -> Self:
        """Without the file, whose features have another width, or another meaning."""
        return self.model_copy(update={"reference": None})


class Moments:
    """Running mean and scatter of features in float64 (Chan's pairwise update, so no cancellation).

    Features themselves are kept as long as there are no more of them than a feature has numbers.
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean = torch.zeros(())
        self._scatter = torch.zeros(())
        self._few: list[Tensor] = []

    def add(self, x: Float[Tensor, "B F"]) -> None:
        """Add a batch."""
        if not len(x):
            return
        x = (x.cpu() if x.device.type == "mps" else x).double()
        self._few = [*self._few, x] if self.n + len(x) <= x.shape[1] else []
        mean = x.mean(0)
        scatter = (x - mean).T @ (x - mean)
        if self.n == 0:
            self.n, self._mean, self._scatter = len(x), mean, scatter
            return
        delta = mean - self._mean
        total = self.n + len(x)
        self._scatter = self._scatter + scatter + torch.outer(delta, delta) * (self.n * len(x) / total)
        self._mean = self._mean + delta * (len(x) / total)
        self.n = total

    def gaussian(self) -> tuple[Float[Tensor, "F"], Float[Tensor, "F F"]]:
        """Mean and unbiased covariance. Raises DataError below two samples."""
        if self.n < 2:
            raise DataError(f"a covariance needs at least 2 images, there are {self.n}; raise `eval.samples`")
        return self._mean, self._scatter / (self.n - 1)

    def factor(self) -> Float[Tensor, "n F"] | None:
        """A with covariance A^T A, where that is singular: one row for each image."""
        return (torch.cat(self._few) - self._mean) / (self.n - 1) ** 0.5 if self._few else None


def matrix_sqrt(c: Float[Tensor, "F F"]) -> Float[Tensor, "F F"]:
    """Symmetric root of a positive semi-definite matrix by eigendecomposition; rounding below 0 counts as 0."""
    values, vectors = torch.linalg.eigh(c)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def frechet_distance(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor, root1: Tensor | None = None) -> float:
    """Squared 2-Wasserstein distance of two Gaussians; `root1` is the root of c1 where it is known already.

    tr (C1 C2)^1/2 is the sum of the roots of the eigenvalues of C1^1/2 C2 C1^1/2, which is symmetric: unlike a general
    matrix root this stays real and accurate for singular covariances.
    """
    root1 = matrix_sqrt(c1) if root1 is None else root1
    return _distance(m1, c1, m2, c2, root1 @ c2 @ root1)


def _distance(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor, product: Tensor) -> float:
    """From a symmetric matrix with the eigenvalues of C1 C2; zeros may lack."""
    cross = torch.linalg.eigvalsh(product).clamp_min(0).sqrt().sum()
    return float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross)


class FrechetMetric(FeatureMetric):
    """Collects moments; images are not kept, nor are features once there are many."""

    formula = "frechet/1 unbiased-covariance float64"

    def __init__(self, net: Features, name: str = "", file: Path | None = None) -> None:
        super().__init__(net, name, file)
        self._real, self._fake = Moments(), Moments()
        self._root: Tensor | None = None

    @cached_property
    def _given(self) -> Statistics | None:
        """The file's statistics. DataError where they are of other features than this network's."""
        if self.file is None:
            return None
        found = read_statistics(self.file, self.net.width)
        mine = {"features": digest_module(self.net), **self.net.settings()}
        if other := [key for key, value in mine.items() if found.about.get(key, value) != value]:
            raise DataError(
                f"{self.file} was made with other features ({', '.join(other)} differ); "
                "give the metric the same `features`, or make the statistics anew"
            )
        self.reference_size = UNSTATED if found.n is None else found.n
        return found

    def fingerprint(self) -> dict[str, str | int | float]:
        """That of every metric over features; of a file, its hash and how many images it says that it is of."""
        _ = self._given
        return super().fingerprint()

    def statistics(self) -> dict[str, Tensor]:
        """`mu`, `sigma` and `n` of the reference."""
        mu, sigma = self._gaussian()
        return {"mu": mu, "sigma": sigma, "n": torch.tensor(self._real.n)}

    def _gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the reference."""
        return self._real.gaussian() if self._given is None else (self._given.mu, self._given.sigma)

    def _reference(self, img: Image) -> None:
        self._real.add(extract(self.net, img)[0])
        self._root = None

    def reset(self) -> None:
        """Forget the generated images."""
        self._fake = Moments()

    def add(self, seen: Seen) -> None:
        """Add generated images."""
        self._fake.add(seen.features)

    def _result(self) -> dict[str, float]:
        m2, c2 = self._fake.gaussian()
        m1, c1 = (x.to(m2.device) for x in self._gaussian())
        few = self._fake.factor()
        if few is not None:  # C2 = A^T A, and A C1 A^T is small
            return {"fd": _distance(m1, c1, m2, c2, few @ c1 @ few.T)}
        self._root = matrix_sqrt(c1) if self._root is None else self._root
        return {"fd": frechet_distance(m1, c1, m2, c2, self._root)}

    def notes(self) -> tuple[str, ...]:
        """Says where a covariance has no full rank, so that the distance is biased upwards."""
        found = []
        for what, moments in (("reference", self._real), ("generated", self._fake)):
            width = moments._mean.numel()
            if 0 < moments.n <= width:
                found.append(f"fd: {moments.n} {what} images for {width} features, so the covariance is singular")
        return tuple(found)
