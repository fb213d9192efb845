"""What must hold before anything is spent, and of what was found, each by the name by which a plan may waive it."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.verdict.declared import least_seeds
from launch.ablation.gates.budget import Budget, amount
from launch.ablation.gates.matching import KEYS, TOLERANCE
from launch.ablation.gates.pairs import Evidence, alike, constant, differences
from launch.ablation.plan import Plan, config_of
from launch.ablation.reading import RATE, SEEDS, nearest
from launch.configs import CHOSEN
from model.errors import UserError
from train.run.files.learned import flatten

NAMES = {
    "keys": "arms differ in the declared factor and the learning rate only",
    "budget": "the matched budget of all arms is within 1 %",
    "seeds": "there are enough seeds to reach alpha",
    "phases": "tuning, pilot and verdict have seeds of their own",
    "grids": "all arms have the same grid of learning rates",
    "edge": "the best learning rate is not at the edge of its grid",
    "init": "seed i starts the parameters that arms share alike",
    "batches": "seed i reads the same batches in all arms",
    "dropout": "seed i draws the same dropout in all arms",
    "evaluation": "all arms are measured on the same items",
    "sources": "first values, order of batches and dropout vary from seed to seed",
    "causality": "no output depends on a later input",
    "code": "all programs ran the same code",
    "packages": "all programs ran with the same versions of packages",
    "text": "all programs learned and were measured on the same text",
    "device": "all programs ran on one kind of device",
    "prng": "all programs drew random numbers of one kind",
    "windows": "all programs were measured on the same windows",
    "last": "every value is of the last step",
    "missing": "every declared seed of every arm is there",
    "looks": "the verdict's seeds were looked at when it was declared",
    "smallest": "D is the one that was declared before the first look",
}


@dataclass(frozen=True)
class Gate:
    """What was found of one rule: its name, as a waiver writes it, whether it holds, and a sentence."""

    name: str
    passed: bool
    text: str


def check_waivers(plan: Plan) -> None:
    """Refuses a waiver of no gate.

    Raises:
        UserError: there is no gate of that name.
    """
    for name in plan.waived:
        if name not in NAMES:
            raise UserError(f"plan {plan.name}: waived: {name} is no gate; {nearest(name, NAMES)}.")


def failed(plan: Plan, gates: Iterable[Gate]) -> list[Gate]:
    """Those that do not hold and are not waived."""
    return [gate for gate in gates if not gate.passed and gate.name not in plan.waived]


def refuse(plan: Plan, gates: Iterable[Gate]) -> None:
    """Refuses a plan of which a gate does not hold, unless it is waived.

    Raises:
        UserError: names the first gate that does not hold, and the others.
    """
    if not (closed := failed(plan, gates)):
        return
    others = f" (and gates {', '.join(gate.name for gate in closed[1:])})" if closed[1:] else ""
    raise UserError(
        f"plan {plan.name}: gate {closed[0].name}: {closed[0].text}{others}: change the plan, or waive it with a "
        f"reason, waived={{{closed[0].name!r}: '...'}}."
    )


def gates_of_plan(plan: Plan) -> list[Gate]:
    """What needs nothing but the plan: keys, seeds, phases, grids."""
    m, n = len(plan.contrasts), len(plan.seeds)
    least = least_seeds(m, plan.alpha)
    other = undeclared(plan)
    twice = sorted({*plan.seeds} & {*plan.tune_seeds, *plan.pilot_seeds} | {*plan.tune_seeds} & {*plan.pilot_seeds})
    grids = set(plan.learning_rates.values())
    shown = "; ".join(f"{arm}: {', '.join(f'{one:g}' for one in grid)}" for arm, grid in plan.learning_rates.items())
    return [
        _gate(
            "keys",
            not other,
            "; ".join(f"{arm} differs in {', '.join(keys)}, which {_is(keys)} not the factor" for arm, keys in other),
        ),
        _gate("seeds", n >= least, f"{n} seeds cannot reach alpha={plan.alpha:g} with {counted(m)}; take {least}"),
        _gate("phases", not twice, f"seeds {', '.join(map(str, twice))} are in two of {', '.join(SEEDS)}"),
        _gate("grids", len(grids) < 2, f"the grids of learning rates differ ({shown}): give all arms the same"),
    ]


def undeclared(plan: Plan) -> list[tuple[str, list[str]]]:
    """Arms with the keys in which they differ from the baseline beyond what is declared.

    Where the family or the task is the factor, so are the keys that only one of two has.
    """
    declared = {*plan.factor, RATE}
    chosen = tuple(f"{section}." for chooser, (section, _) in CHOSEN.items() if chooser in declared)

    def other(key: str, values: tuple[Any, Any]) -> bool:
        return key not in declared and not (key.startswith(chosen) and None in values)

    found = [(arm, [key for key, values in difference(plan, arm).items() if other(key, values)]) for arm in plan.arms]
    return [(arm, keys) for arm, keys in found if keys]


def difference(plan: Plan, arm: str) -> dict[str, tuple[Any, Any]]:
    """{key: (the baseline's value, the arm's)} of all keys that differ."""
    base, own = (flatten(config_of(plan, one)) for one in (plan.baseline, arm))
    return {key: (base.get(key), own.get(key)) for key in {**base, **own} if base.get(key) != own.get(key)}


def gates_of_budgets(plan: Plan, budgets: Mapping[str, Budget]) -> list[Gate]:
    """Whether the matched budget is the same in all arms."""
    amounts = {arm: amount(budget, plan.budget) for arm, budget in budgets.items()}
    base = amounts[plan.baseline]
    off = {arm: one / base - 1 for arm, one in amounts.items() if abs(one / base - 1) > TOLERANCE}
    shown = ", ".join(f"{arm} has {share:+.1%}" for arm, share in off.items())
    keys = " or ".join(f"--match={key}" for key in KEYS)
    told = f"{plan.budget} of the arms differ by more than 1 % ({shown}), which {keys} may solve"
    return [_gate("budget", not off, told)]


def gates_of_pairs(plan: Plan, evidence: Mapping[str, Evidence]) -> list[Gate]:
    """Whether seed i is the same in each two arms, and another than seed j.

    Raises:
        ValueError: the evidence is of other seeds than the plan's.
    """
    if any({*one.draws} != {*plan.seeds} for one in evidence.values()):
        raise ValueError(f"the evidence must be of seeds {plan.seeds}")
    found: dict[str, list[str]] = {name: [] for name in ("init", "batches", "dropout", "evaluation")}
    shared: dict[str, list[str]] = {name: [] for name in found}
    for one, other in itertools.combinations(evidence, 2):
        for name, text in alike(evidence[one], evidence[other]).items():
            shared[name].append(f"{one} and {other}: {text}")
        for name, text in differences(evidence[one], evidence[other]).items():
            found[name].append(f"{text} in {other} than in {one}")
    same = {arm: [kind for kind in constant(one) if not _shared(plan, arm, kind)] for arm, one in evidence.items()}
    texts = [f"several seeds of {arm} have the same {' and '.join(kinds)}" for arm, kinds in same.items() if kinds]
    gates = [Gate(name, not wrong, "; ".join(wrong or (NAMES[name], *shared[name]))) for name, wrong in found.items()]
    return [*gates, _gate("sources", not texts, "; ".join(texts))]


def _shared(plan: Plan, arm: str, kind: str) -> bool:
    """Whether the plan says that the seeds share this; its page says so, too."""
    return kind == "order of batches" and config_of(plan, arm).data.order == "shared"


def gate_of_causality(cuts: Mapping[str, int | None]) -> Gate:
    """Whether an arm's outputs depend on later inputs; by arm, what `causality.leak` says."""
    leaks = [f"{arm} sees place {cut} or later from before it" for arm, cut in cuts.items() if cut is not None]
    return _gate("causality", not leaks, "; ".join(leaks))


def gates_of_records(plan: Plan, records: Mapping[str, Sequence[Any]], look: int) -> list[Gate]:
    """Whether the programs of all arms were made alike, and left all that the look of so many seeds is to read.

    records: arm to what its programs left (`launch.ablation.programs.Record`).
    """
    every = [record for own in records.values() for record in own]
    origins = {"code": "code", "packages": "packages", "text": "data"}
    found = [_alike(name, [record.made.get(key) for record in every]) for name, key in origins.items()]
    found += [_alike(name, [record.where.get(name) for record in every]) for name in ("device", "prng", "windows")]
    steps = {arm: str(config_of(plan, arm).train.steps) for arm in records}
    early = [arm for arm, own in records.items() if any(not _is_last(one, plan.endpoint, steps[arm]) for one in own)]
    found.append(_gate("last", not early, f"{plan.endpoint} of {', '.join(early)} is not that of the last step"))
    wanted = plan.seeds[:look]
    gone = {arm: [*({*wanted} - {seed for one in own for seed in one.seeds})] for arm, own in records.items()}
    lost = [f"{arm} lacks seeds {', '.join(map(str, sorted(some)))}" for arm, some in gone.items() if some]
    lost += [f"{arm} is not there" for arm in plan.arms if arm not in records]
    return [*found, _gate("missing", not lost, f"{'; '.join(lost)}: a failed seed counts as one, and is never dropped")]


def _alike(name: str, values: Sequence[Any]) -> Gate:
    different = [*dict.fromkeys(map(str, (one for one in values if one is not None)))]
    return _gate(name, len(different) < 2, f"programs of one grid differ: {' and '.join(different[:3])}")


def _is_last(record: Any, metric: str, step: str) -> bool:
    """Whether a program has values, and those of the last step; where all of its seeds failed, it has none."""
    if metric not in record.values:
        return {*record.failed} == {*map(str, record.seeds)}
    return bool(record.curves.get(metric, {}).get(step, record.values[metric]) == record.values[metric])


def gates_of_looks(plan: Plan, looks: Iterable[Mapping[str, Any]], taken: int) -> list[Gate]:
    """Whether the seeds are looked at as declared, and were not before, nor others that were are left out now; `taken`
    is how many this look has.

    looks: what the ledger noted of the question: plan (its hash), seeds, smallest.
    """
    earlier = [one for one in looks if one["plan"] != plan.hash and {*one["seeds"]} & {*plan.seeds}]
    counts = sorted({len(one["seeds"]) for one in earlier} - {*plan.looks} | ({taken} - {*plan.looks}))
    sizes = sorted({str(one["smallest"]) for one in earlier if _size(one["smallest"]) != _size(plan.smallest)})
    gone = sorted({seed for one in earlier for seed in one["seeds"]} - {*plan.seeds})
    dropped = f"seeds {', '.join(map(str, gone))} were looked at with others of these, and are no seeds of this plan"
    peeked = f"the seeds were looked at after {', '.join(map(str, counts))}, and the plan declares {plan.looks}"
    return [
        _gate("looks", not counts, peeked),
        _gate("smallest", not sizes, f"D was {' and '.join(sizes)} at a look at these seeds, and is {plan.smallest}"),
        _gate("missing", not gone, f"{dropped}: a failed seed counts as one, and is never dropped"),
    ]


def _size(smallest: float | str) -> float | str:
    """D as it was said: '1' and 1.0 are the same, and a share is a share."""
    return smallest if "%" in str(smallest) else float(smallest)


def _gate(name: str, passed: bool, otherwise: str) -> Gate:
    return Gate(name, passed, NAMES[name] if passed else otherwise)


def counted(contrasts: int) -> str:
    """How many contrasts there are, in words."""
    return "1 contrast" if contrasts == 1 else f"{contrasts} contrasts"


def _is(some: Sequence[Any]) -> str:
    return "is" if len(some) == 1 else "are"
