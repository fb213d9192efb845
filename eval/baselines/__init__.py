"""What scores are worth: what simple rules reach on the same data."""

from eval.baselines.examples import BASELINES, example_baselines, known_example_baselines
from eval.baselines.masked import Neighbours
from eval.baselines.text import baselines, known_baselines

__all__ = [
    "BASELINES",
    "Neighbours",
    "baselines",
    "example_baselines",
    "known_baselines",
    "known_example_baselines",
]
