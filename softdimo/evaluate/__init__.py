"""The table of metrics: real images, reconstructions, teacher and student, one evaluator, error bars over seeds."""

from softdimo.evaluate.guard import network_digests
from softdimo.evaluate.rows import Pieces, Progress, Subject, reference_images
from softdimo.evaluate.table import evaluate

__all__ = ["Pieces", "Progress", "Subject", "evaluate", "network_digests", "reference_images"]
