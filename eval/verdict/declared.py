"""What was said before the numbers were seen, and what cannot be declared."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from model.errors import UserError

Results = Mapping[str, Mapping[int, float]]
"""Cell (arm) -> seed -> value; inf, -inf or nan is a failed seed, which keeps its place."""

LEAST_OF_TWO = 4  # with fewer seeds a first look decides nothing
MOST_SEEDS = 40  # the exact test sorts the 2^20 sums of a half
SIMULATED = 16  # the most seeds at which the rule is simulated; with more, the exact test costs next to nothing
LEAST, LARGEST = 1e-130, 1e150  # of a number but 0, so that squares of differences neither vanish nor overflow


@dataclass(frozen=True)
class Contrast:
    """What is compared, seed by seed: the sum of the cells of `plus` minus that of `minus`.

    An arm against the baseline: ('arm',) - ('base',). An interaction, a difference of two differences:
    ('a1', 'b0') - ('a0', 'b1').
    """

    name: str
    plus: tuple[str, ...]
    minus: tuple[str, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """All cells that it reads."""
        return self.plus + self.minus


@dataclass(frozen=True)
class Declared:
    """What was said before the numbers were seen.

    `endpoint` is its name, such as 'val/loss', `direction` says whether 'lower' or 'higher' is better, `smallest` is D,
    the smallest effect of interest in the endpoint's units. `looks` are the seeds by each look, one or two. Where
    `success` is given, the endpoint is the rate of seeds at that threshold or better, and D a difference of rates.

    Raises:
        UserError: it cannot be judged.
    """

    question: str
    contrasts: tuple[Contrast, ...]
    endpoint: str
    direction: str
    smallest: float
    alpha: float = 0.05
    looks: tuple[int, ...] = (8,)
    success: float | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be judged."""
        _check_contrasts(self.contrasts)
        if self.direction not in ("lower", "higher"):
            raise UserError(f"direction={self.direction!r} must be 'lower' or 'higher': which values are better.")
        if not LEAST <= self.smallest <= LARGEST:
            raise UserError(
                f"smallest={self.smallest} must be a number above 0, from {LEAST:g} to {LARGEST:g}: the smallest "
                f"effect of interest, in units of {self.endpoint}."
            )
        if not 0 < self.alpha <= 0.2:
            raise UserError(f"alpha={self.alpha} must be above 0 and at most 0.2: the share of false alarms allowed.")
        if least_seeds(len(self.contrasts), self.alpha) > SIMULATED:
            raise UserError(
                f"alpha={self.alpha} must be at least {len(self.contrasts) * 2.0 ** (1 - SIMULATED):.2g} with "
                f"{len(self.contrasts)} of arms to compare: {SIMULATED} seeds reach no less."
            )
        _check_looks(self.looks)
        if self.success is not None:
            self._check_success(self.success)

    @property
    def good_sign(self) -> str:
        """Which differences are good, 'lower' or 'higher': of success a higher rate, whichever values reach it."""
        return self.direction if self.success is None else "higher"

    def _check_success(self, success: float) -> None:
        if not math.isfinite(success):
            raise UserError(f"success={success} must be a finite threshold on {self.endpoint}.")
        if self.smallest >= 1:
            raise UserError(
                f"smallest={self.smallest} must be below 1: with success={success} it is a difference of rates."
            )
        if len(self.looks) > 1:
            raise UserError(
                f"looks={self.looks} must be one number where success is the endpoint: no first look decides."
            )
        if any(len(contrast.cells) > 2 for contrast in self.contrasts):
            raise UserError("success must be left out for an interaction: McNemar's test compares two arms.")


def is_judged(value: float) -> bool:
    """Whether a number has a size that can be judged; what is not finite has: it is a failed seed."""
    return value == 0 or not math.isfinite(value) or LEAST <= abs(value) <= LARGEST


def least_seeds(arms: int, alpha: float) -> int:
    """The fewest seeds n by which m arms can reach alpha: the exact test's smallest p is 2 / 2^n, times m by Holm."""
    return math.ceil(1 + math.log2(arms / alpha))


def _check_contrasts(contrasts: tuple[Contrast, ...]) -> None:
    if not contrasts:
        raise UserError("contrasts must not be empty: name at least one arm beside the baseline.")
    names = [contrast.name for contrast in contrasts]
    if len(set(names)) < len(names):
        raise UserError(f"the contrasts {names} must have names of their own.")
    for name, plus, minus in ((one.name, one.plus, one.minus) for one in contrasts):
        if len(plus) != len(minus) or not 1 <= len(plus) <= 2 or len({*plus, *minus}) < len(plus) + len(minus):
            raise UserError(
                f"contrast {name!r}, {plus} - {minus}, must be one arm minus another, or two minus two others."
            )


def _check_looks(looks: tuple[int, ...]) -> None:
    whole = all(type(look) is int for look in looks)
    least = 2 if len(looks) == 1 else LEAST_OF_TWO
    ascending = whole and list(looks) == sorted({*looks})
    if not (ascending and 1 <= len(looks) <= 2 and least <= looks[0] and looks[-1] <= MOST_SEEDS):
        raise UserError(
            f"looks={looks} must be one number of seeds from 2, or two ascending ones from {LEAST_OF_TWO}, "
            f"to {MOST_SEEDS}, such as (8, 16)."
        )
