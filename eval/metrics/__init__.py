"""How predictions are scored, for each kind of example."""

from eval.metrics.records import records
from eval.metrics.scores import scores
from eval.metrics.spans import Answer

__all__ = ["Answer", "records", "scores"]
