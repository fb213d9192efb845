"""The one kind of error that is the user's to mend, and the ranges that numbers must keep."""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

INT32 = 2**31 - 1  # the largest step, index and size: what counts on a device is int32


class UserError(ValueError):
    """A refusal in one sentence: the value, the rule, and the flag or argument to change.

    A command prints the sentence as its last line on stderr and exits with its `status`; a notebook sees it raised.
    Every other exception is a defect of ours and keeps its traceback.
    """

    status = 2


class Unanswered(UserError):
    """A service or another process that did not answer in time: the same command may be started again, which its exit
    status says to what starts commands (EX_TEMPFAIL of sysexits.h).
    """

    status = 75


class Diverged(UserError):
    """A run whose numbers are no longer finite: a result where runs are compared, a refusal everywhere else."""


@contextlib.contextmanager
def keys_of(site: str, keys: Iterable[str]) -> Iterator[None]:
    """Refusals from inside name those of these keys of `config.model` that a site has for itself: `encoder_mask` for
    `mask`. What is refused, and why, they say as they did.
    """
    try:
        yield
    except UserError as error:
        names = re.compile(rf"(config\.model\.)({'|'.join(keys)})\b")
        raise type(error)(names.sub(rf"\g<1>{site}_\g<2>", str(error))) from error


class Range(NamedTuple):
    """The numbers from `least` to `most`, without `most` itself where `below`; `zero` says what 0 means beside them."""

    least: float
    most: float = INT32
    zero: str = ""
    below: bool = False

    def __contains__(self, number: Any) -> bool:
        if number == 0 and self.zero:
            return True
        # The device computes in float32, where 0.99999999 is 1.
        return bool(self.least <= number <= self.most and not (self.below and np.float32(number) >= self.most))

    def __str__(self) -> str:
        least, most = (str(one) if isinstance(one, int) else f"{one:g}" for one in (self.least, self.most))
        upper = "" if self.most == math.inf else f" and {'below' if self.below else 'at most'} {most}"
        return f"at least {least}{upper}{f', or 0 for {self.zero}' if self.zero else ''}"


def check_range(flag: str, value: float, allowed: Range) -> None:
    """Refuses a number outside of its range; a NaN is outside of all.

    Raises:
        UserError: '--flag=value must be at least ...'
    """
    if value not in allowed:
        raise UserError(f"--{flag}={value} must be {allowed}.")


def check_ranges(section: str, values: Any, ranges: Mapping[str, Range]) -> None:
    """`check_range` of each attribute of `values` that has a range, by the flag `--section.name`."""
    for name, allowed in ranges.items():
        check_range(f"{section}.{name}", getattr(values, name), allowed)
