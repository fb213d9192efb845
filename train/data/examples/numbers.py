"""Translation: numbers written out in two languages, by num2words."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from num2words import num2words

from model.errors import UserError
from train.data.examples.types import Made, Pair
from train.data.order import shuffled

DIGITS = 6  # numbers are below 10 ** DIGITS
TRAIN = 30_000  # pairs that are learned, as many of each number of digits as there are
HELD_OUT = 250  # numbers of each number of digits that are validation, at most a tenth of them
SMALL = 100  # numbers below are all learned: they are the words that the others are made of


def numbers(
    languages: tuple[str, str] = ("en", "de"),
    digits: int = DIGITS,
    train: int = TRAIN,
    while_waiting: Callable[[], object] = lambda: None,
) -> Made:
    """Returns numbers below 10 ** `digits` in two languages, and as 'longer' some with one digit more.

    Which numbers are held out is drawn by a permutation of the numbers of each number of digits, so it depends on the
    numbers alone.

    Raises:
        UserError: a language that num2words lacks, or numbers of digits that are too few or too many.
    """
    if not 3 <= digits <= 9:
        raise UserError(f"numbers of {digits} digits are not of 3 to 9: change their number.")
    for language in languages:
        _written(0, language)
    chosen: dict[str, list[int]] = {"train": list(range(SMALL)), "validation": [], "longer": []}
    for count in range(3, digits + 1):
        held_out = min(HELD_OUT, 9 * 10 ** (count - 1) // 10)
        quota = (train - len(chosen["train"])) // (digits + 1 - count)  # what shorter ones leave goes to longer ones
        drawn = _drawn(count)
        chosen["validation"] += itertools.islice(drawn, held_out)
        chosen["train"] += itertools.islice(drawn, max(quota, 0))
    chosen["longer"] += itertools.islice(_drawn(digits + 1), 2 * HELD_OUT)
    splits: dict[str, list[Pair]] = {split: [] for split in chosen}
    for split, some in chosen.items():
        for number in some:
            while_waiting()
            splits[split].append(Pair(*(_written(number, language) for language in languages)))
    return Made(splits)


def _drawn(digits: int) -> Iterator[int]:
    """The numbers of so many digits, in an order that depends on them alone."""
    first, size = 10 ** (digits - 1), 9 * 10 ** (digits - 1)
    for start in range(0, size, 1000):
        yield from (first + shuffled(np.arange(start, min(start + 1000, size)), size, seed=digits)).tolist()


def _written(number: int, language: str) -> str:
    try:
        return str(num2words(number, lang=language))
    except NotImplementedError:
        raise UserError(f"num2words has no language {language!r}: give another, such as 'en' or 'de'.") from None
