"""Density and coverage."""

from __future__ import annotations

from softdimo.kinds import Context
from softdimo_plugins.metrics.neighbors import Counts, NeighborMetric, NeighborSpec


class DensityCoverage(NeighborSpec):
    """`density` = real balls per sample / k (may exceed 1); `coverage` = share of real balls with a sample.

    Naeem et al. 2020. Only real balls are used, so neither number is fooled by outliers among the samples.
    """

    def build(self, context: Context) -> DensityCoverageMetric:
        """The metric, without images yet."""
        return DensityCoverageMetric(*self.arguments(context))


class DensityCoverageMetric(NeighborMetric):
    """Fidelity and diversity from k-nearest-neighbor balls of the real images."""

    formula = "density-coverage/1 closed-balls self-excluded"
    needs_recall = False

    def numbers(self, counts: Counts) -> dict[str, float]:
        """Balls per generated image, and the share of balls that hold one."""
        return {
            "density": float(counts.balls.double().mean()) / self.k,
            "coverage": float(counts.covered.double().mean()),
        }
