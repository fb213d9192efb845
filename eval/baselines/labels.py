"""Labels without a model: the commonest one, those that most have, and naive Bayes on words."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from train.data.examples import Labelled

STRENGTH = 0.1  # how often each word is held to have been seen with each label beforehand
_WORD = re.compile(r"\w+")


def majority(train: Sequence[Labelled], asked: Sequence[Labelled]) -> list[str | tuple[str, ...] | float]:
    """Returns for each the commonest label of the train split; of numbers, their mean."""
    known = [one.label for one in train]
    numbers = [label for label in known if isinstance(label, float)]
    return [float(np.mean(numbers)) if numbers else Counter(known).most_common(1)[0][0]] * len(asked)


def majority_by_label(train: Sequence[Labelled], asked: Sequence[Labelled]) -> list[tuple[str, ...]]:
    """Returns for each the labels that more than half of the train split has; nothing where a label is not several."""
    if not all(isinstance(one.label, tuple) for one in train):
        return []
    counts = Counter(name for one in train if isinstance(one.label, tuple) for name in set(one.label))
    return [tuple(sorted(name for name, count in counts.items() if 2 * count > len(train)))] * len(asked)


def naive_bayes(train: Sequence[Labelled], asked: Sequence[Labelled]) -> list[str]:
    """Returns the likeliest label by the words of each text; nothing where a label is no single name.

    p(label | text) is proportional to p(label) times the product over the text's words of p(word | label), with
    p(word | label) = (count(word, label) + STRENGTH) / (count(label) + STRENGTH * words) (multinomial naive Bayes:
    McCallum and Nigam 1998). Words that the train split lacks say nothing.
    """
    if not all(isinstance(one.label, str) for one in train):
        return []
    names = sorted({str(one.label) for one in train})
    vocabulary: dict[str, int] = {}
    for one in train:
        for word in _words(one):
            vocabulary.setdefault(word, len(vocabulary))
    labels_N = np.array([names.index(str(one.label)) for one in train])
    # Rows are labels: a matrix of zeros and ones times the counts of each text.
    belongs = scipy.sparse.csr_matrix((np.ones(len(train)), (labels_N, np.arange(len(train)))))
    counts_LV = (belongs @ _counts(train, vocabulary)).toarray() + STRENGTH
    log_LV = np.log(counts_LV) - np.log(counts_LV.sum(axis=1, keepdims=True))
    prior_L = np.log(np.bincount(labels_N) / len(train))
    scores_NL = _counts(asked, vocabulary) @ log_LV.T + prior_L
    return [names[label] for label in scores_NL.argmax(axis=1)]


def _words(example: Labelled) -> list[str]:
    return _WORD.findall(f"{example.text} {example.second_text}")


def _counts(examples: Sequence[Labelled], vocabulary: dict[str, int]) -> scipy.sparse.csr_matrix:
    """How often each text has each word of the vocabulary: (texts, words)."""
    ids = [[vocabulary[word] for word in _words(one) if word in vocabulary] for one in examples]
    ends = np.cumsum([0, *map(len, ids)])
    flat = np.fromiter(itertools.chain(*ids), np.int64, ends[-1])
    return scipy.sparse.csr_matrix((np.ones(len(flat)), flat, ends), (len(examples), len(vocabulary)))
