"""Classification where it is known on which letters each label stands: a group of which all letters are there.

A benchmark for explanations: where a label needs all of k tokens, each of them is needed, whatever computes the label
(planted rationales; compare Bastings et al. 2022, "Will You Find These Shortcuts?").
"""

import random
from collections.abc import Callable

from model.errors import UserError
from train.data.examples.types import Labelled, Made

GROUPS = ("abc", "def", "ghi")  # each is a label; a text has all letters of one of them, or of none
NONE = "none"
OTHERS = "jklmnopqrstuvwxyz"  # what else there is
LENGTH = 20
TRAIN, HELD_OUT = 12_000, 800


def rationales(
    length: int = LENGTH,
    train: int = TRAIN,
    held_out: int = HELD_OUT,
    seed: int = 0,
    while_waiting: Callable[[], object] = lambda: None,
) -> Made:
    """Returns texts of `length` letters in a drawn order, a quarter of each label, no two alike.

    A text of a group holds each of its letters once, and two of the three of every other group, which are so near to
    it; one of `none` two of each. So by masking any letter of its rationale a text becomes one of `none`, and by
    masking any other it stays what it was.

    Raises:
        UserError: a length without room for letters of no group.
    """
    if length < 8:
        raise UserError(f"texts of {length} letters have no room for the 7 that count: give at least 8.")
    draw, seen = random.Random(seed), set[str]()
    splits: dict[str, list[Labelled]] = {"validation": [], "train": []}
    for split, count in (("validation", held_out), ("train", train)):
        while len(splits[split]) < count:
            while_waiting()
            label = (*GROUPS, NONE)[len(splits[split]) % (len(GROUPS) + 1)]
            text = _text(draw, label, length)
            if text not in seen:
                seen.add(text)
                splits[split].append(Labelled(text, label))
    return Made(splits)


def _text(draw: random.Random, label: str, length: int) -> str:
    letters = [letter for group in GROUPS for letter in draw.sample(group, 3 if group == label else 2)]
    letters += draw.choices(OTHERS, k=length - len(letters))
    draw.shuffle(letters)
    return "".join(letters)


def label_of(text: str) -> str:
    """Returns the group of which a text has all letters."""
    return next((group for group in GROUPS if set(group) <= set(text)), NONE)


def rationale(text: str) -> tuple[int, ...]:
    """Returns the places of the letters that the label of a text stands on; none, where it is of no group."""
    return tuple(place for place, letter in enumerate(text) if letter in label_of(text) and label_of(text) != NONE)
