"""Improved precision and recall."""

from __future__ import annotations

from softdimo.kinds import Context
from softdimo_plugins.metrics.neighbors import Counts, NeighborMetric, NeighborSpec


class PrecisionRecall(NeighborSpec):
    """`precision` = share of samples inside a real ball; `recall` = share of real images inside a sample's ball.

    Kynkäänniemi et al. 2019. Recall falls where samples are fewer than real images: sizes are part of the number.
    """

    def build(self, context: Context) -> PrecisionRecallMetric:
        """The metric, without images yet."""
        return PrecisionRecallMetric(*self.arguments(context))


class PrecisionRecallMetric(NeighborMetric):
    """Fidelity and diversity from k-nearest-neighbor manifolds of both sets."""

    formula = "precision-recall/1 closed-balls self-excluded"
    needs_recall = True

    def numbers(self, counts: Counts) -> dict[str, float]:
        """Shares of generated and of real images."""
        assert counts.recalled is not None
        precision = (counts.balls > 0).double().mean()
        return {"precision": float(precision), "recall": float(counts.recalled.double().mean())}
