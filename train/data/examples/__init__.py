"""What tasks learn from: examples by number, in splits, from the library, from TFDS, or one's own."""

from train.data.examples.embedded import EMBEDDED, embedded
from train.data.examples.opening import open_corpus
from train.data.examples.own import own_examples
from train.data.examples.public import public_examples
from train.data.examples.types import Answer, Corpus, Labelled, Pair, Question, Tagged

__all__ = [
    "EMBEDDED",
    "Answer",
    "Corpus",
    "Labelled",
    "Pair",
    "Question",
    "Tagged",
    "embedded",
    "open_corpus",
    "own_examples",
    "public_examples",
]
