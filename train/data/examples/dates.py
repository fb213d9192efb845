"""Translation: dates in two languages or forms, by babel."""

import datetime
from collections.abc import Callable

import numpy as np
from babel import UnknownLocaleError
from babel.dates import format_date

from model.errors import UserError
from train.data.examples.types import Made, Pair
from train.data.order import shuffled

FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
FORMS = ("full", "long", "medium", "short")
HELD_OUT = 1000  # days that are validation


def dates(
    forms: tuple[str, str] = ("en:full", "de:full"),
    train: int = 30_000,
    while_waiting: Callable[[], object] = lambda: None,
) -> Made:
    """Returns days of 1900 to 2099, each written in two forms `LANGUAGE:FORM`, drawn by a fixed permutation.

    Raises:
        UserError: a form or a language that babel lacks, or more days than there are.
    """
    size = (LAST - FIRST).days + 1
    if not 1 <= train <= size - HELD_OUT:
        raise UserError(f"{train} days to learn are not from 1 to {size - HELD_OUT}: change their number.")
    days = FIRST.toordinal() + shuffled(np.arange(HELD_OUT + train), size, seed=0)
    pairs = []
    for day in days.tolist():
        while_waiting()
        pairs.append(Pair(*(_written(datetime.date.fromordinal(day), form) for form in forms)))
    return Made({"train": pairs[HELD_OUT:], "validation": pairs[:HELD_OUT]})


def _written(day: datetime.date, form: str) -> str:
    language, _, length = form.partition(":")
    if not language or length not in FORMS:  # babel takes '' for the language of this machine
        raise UserError(f"the form {form!r} of a date is not LANGUAGE:FORM with a form of {', '.join(FORMS)}: mend it.")
    try:
        return format_date(day, length, locale=language)
    except (UnknownLocaleError, ValueError):  # the latter for what is no language at all
        raise UserError(f"babel has no language {language!r}: give another, such as 'en' or 'de'.") from None
