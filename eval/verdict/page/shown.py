"""What a page shows beside the verdict, where whoever ran it knows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Number = int | float
Cells = Mapping[str, Mapping[int, float]]  # arm -> seed -> value, as the verdict's own results


@dataclass(frozen=True)
class Curve:
    """One metric of one arm over training.

    Attributes:
        steps: (S,), ascending.
        values: (N, S), a line for each seed; what is not finite is left out of the picture, and counted.
    """

    steps: Sequence[Number]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Shown:
    """All of it plain values, and all of it optional: what is not given is not on the page.

    Attributes:
        plan: what was declared, by name, such as {'base': 'configs/gpt.py:quickstart', 'hash': '3f…'}.
        budgets: arm -> {'parameters': 36912, 'FLOPs per token': 3.1e5, ...}; all names there are become columns.
        matched: the name of the budget that is equal in all arms.
        curves: arm -> the endpoint over training.
        curves_of: the name of what the curves show, where it is not the endpoint.
        curves_over: the name of their steps.
        looked: what was looked at how often, such as {'plans': 2, 'arms': 4, 'looks': 3}: the ledger's counts.
        commands: row -> the command that reproduces it. A row is a contrast's name, an arm's, or an arm and its seeds.
        waived: gate -> the reason that the plan gives.
        unchecked: gates that nobody could check, such as all about configs where a table came from elsewhere.
        not_tested: what the verdict does not speak of, a sentence each.
        notes: what else a reader must know, a sentence each: a shared order of the data, a plan that was extended.
        exploratory: metric -> arm -> seed -> value: shown without a word.
    """

    plan: Mapping[str, object] = field(default_factory=dict)
    budgets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    matched: str = ""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    curves_of: str = ""
    curves_over: str = "step"
    looked: Mapping[str, int] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)
    waived: Mapping[str, str] = field(default_factory=dict)
    unchecked: Sequence[str] = ()
    not_tested: Sequence[str] = ()
    notes: Sequence[str] = ()
    exploratory: Mapping[str, Cells] = field(default_factory=dict)
