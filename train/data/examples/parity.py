"""Parity of bits: whether a string has an even or an odd number of ones.

A state of one bit, carried along, tells it at every length, and recurrent networks that have learned short strings
tell longer ones; those of attention do not (Hahn 2020, "Theoretical Limitations of Self-Attention in Neural Sequence
Models"; Deletang et al. 2023, "Neural Networks and the Chomsky Hierarchy", table 1).
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from model.errors import UserError
from train.data.examples.types import Made, Pair
from train.data.order import shuffled

LONGEST = 10  # bits of a string that is learned; those of validation have up to twice as many
TRAIN = 2000
HELD_OUT = 50  # strings of each length that are validation


def parity(longest: int = LONGEST, train: int = TRAIN, while_waiting: Callable[[], object] = lambda: None) -> Made:
    """Returns strings of 1 to `longest` bits with `even` or `odd`, as many of each length, and as 'validation' some
    that are longer, up to twice: what is told there is the rule, and no list of strings.

    Raises:
        UserError: a longest string that is too short or too long.
    """
    if not 4 <= longest <= 15:
        raise UserError(f"the longest of {longest} bits is not of 4 to 15: change it.")
    splits: dict[str, list[Pair]] = {"train": [], "validation": []}
    for bits in range(1, 2 * longest + 1):
        while_waiting()
        if bits > longest:
            splits["validation"] += map(_pair, itertools.islice(_drawn(bits), HELD_OUT))
        else:  # short strings are few, and are asked again: by them the rule is found
            drawn = itertools.islice(_drawn(bits), train // longest)
            splits["train"] += itertools.islice(itertools.cycle(map(_pair, drawn)), train // longest)
    return Made(splits)


def _drawn(bits: int) -> Iterator[str]:
    """The strings of so many bits, in an order that depends on them alone."""
    size = 2**bits
    for start in range(0, size, 1000):
        for number in shuffled(np.arange(start, min(start + 1000, size)), size, seed=bits).tolist():
            yield f"{number:0{bits}b}"


def _pair(string: str) -> Pair:
    return Pair(string, "odd" if string.count("1") % 2 else "even")
