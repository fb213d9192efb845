"""Which cases of a table `make test` runs, and which are left to `make test-rest`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def tiered(cases: Iterable[tuple[Any, ...]], every_day: Callable[..., bool]) -> list[Any]:
    """The cases as pytest takes them; those that `every_day(*case)` denies are marked `rest`."""
    return [pytest.param(*case, marks=() if every_day(*case) else pytest.mark.rest) for case in cases]
