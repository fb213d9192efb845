"""Translations without a model: the source itself, and a dictionary of single words."""

from collections import Counter
from collections.abc import Sequence

from train.data.examples import Pair


def copy(train: Sequence[Pair], asked: Sequence[Pair]) -> list[str]:
    """Returns each source as it is."""
    return [one.source for one in asked]


def dictionary(train: Sequence[Pair], asked: Sequence[Pair]) -> list[str]:
    """Returns each source with every word translated where it stands; a word that was not seen stays.

    The translation of s is the t of the highest 2 n(s, t) / (n(s) + n(t)), where n counts the pairs that hold them
    (Dice 1945, "Measures of the Amount of Ecologic Association Between Species"); of two as high, the first by letters.
    """
    sources, targets, both = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    for one in train:
        source, target = sorted(set(one.source.split())), sorted(set(one.target.split()))
        sources.update(source)
        targets.update(target)
        both.update((s, t) for s in source for t in target)
    best: dict[str, tuple[float, str]] = {}
    for (s, t), count in sorted(both.items()):
        dice = 2 * count / (sources[s] + targets[t])
        if s not in best or dice > best[s][0]:
            best[s] = dice, t
    return [" ".join(best[word][1] if word in best else word for word in one.source.split()) for one in asked]
