"""Tags without a model: the commonest tag of each word."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from train.data.examples import Tagged


def commonest_tag(train: Sequence[Tagged], asked: Sequence[Tagged]) -> list[tuple[str, ...]]:
    """Returns for each word the tag that it has most often in the train split (of two as common, the one seen first);
    a word that was not seen has the commonest of all."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for one in train:
        overall.update(one.tags)
        for word, tag in zip(one.words, one.tags, strict=True):
            counts[word][tag] += 1
    best = {word: seen.most_common(1)[0][0] for word, seen in counts.items()}
    other = overall.most_common(1)[0][0]
    return [tuple(best.get(word, other) for word in one.words) for one in asked]
