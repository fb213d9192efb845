"""The tune phase: the learning rate of each arm, by seeds that no other phase uses."""

import dataclasses
import math
from collections.abc import Mapping

from launch.ablation.disk import check_disk
from launch.ablation.grid import Grid
from launch.ablation.plan import Plan
from model.errors import UserError
from train.run.files.json_files import write

MOST = 3  # times that a grid is extended
Rates = Mapping[str, tuple[float, ...]]  # of each arm, ascending


def tune(grid: Grid) -> dict[str, float | None]:
    """The learning rate of each arm: that of the best mean over the tuning seeds; None where nothing is tuned.

    A rate with a failed seed is worse than all without. Where the best of an arm is at the edge of its grid, the grids
    of all arms are extended beyond it alike, up to three times, unless the gate `edge` is waived: no seed of the
    verdict has a say in it. Written to tuning.json, and what is extended to the ledger.

    Raises:
        UserError: every rate fails, or the best one is at the edge still.
    """
    plan = grid.plan
    if not plan.learning_rates or plan.contrast == "sensitivity":
        return dict.fromkeys(plan.arms)
    rates: Rates = plan.learning_rates
    for turn in range(MOST + 1):
        means = _means(grid, rates)
        best = {arm: min(costs, key=costs.__getitem__) for arm, costs in means.items()}
        sign = _sign(plan)
        shown = {arm: {repr(rate): sign * cost for rate, cost in own.items()} for arm, own in means.items()}
        write(grid.place / "tuning.json", {"means": shown, "best": best})
        more = set() if "edge" in plan.waived else beyond(rates, best)
        if not more or turn == MOST:
            break
        rates = {arm: tuple(sorted({*own, *more})) for arm, own in rates.items()}
        wider = dataclasses.replace(plan, learning_rates=rates)
        check_disk(wider, grid.folder)
        grid.bar.expect(dataclasses.replace(grid, plan=wider).seed_steps)
        grid.ledger.note(
            plan.question, "grid", plan=plan.hash, learning_rates={arm: [*own] for arm, own in rates.items()}
        )
    for arm, rate in best.items():
        if not math.isfinite(means[arm][rate]):
            raise UserError(
                f"plan {plan.name}: a seed fails at every learning rate of {arm} ({_list(rates[arm])}): give lower"
                " ones."
            )
        if more and rate in (rates[arm][0], rates[arm][-1]):
            raise UserError(
                f"plan {plan.name}: gate edge: the best learning rate of {arm}, {rate:g}, is at the edge of its grid,"
                f" which was extended {MOST} times: set learning_rates to {_list({*rates[arm], *more})} in all arms, or"
                " waive it with a reason, waived={'edge': '...'}."
            )
    return dict(best)


def beyond(rates: Rates, best: Mapping[str, float]) -> set[float]:
    """The next rates outward, in the grid's own steps, where an arm's best one is at the edge of its grid."""
    found = set()
    for arm, rate in best.items():
        low, *_, high = grid = rates[arm]
        if rate in (low, high):
            inner = grid[1] if rate == low else grid[-2]
            found.add(float(f"{rate * rate / inner:.6g}"))
    return found


def _means(grid: Grid, rates: Rates) -> dict[str, dict[float, float]]:
    """Of each arm and rate over the tuning seeds: less is better, and a failed seed is infinite."""
    plan = grid.plan
    records = grid.run("tune", [(arm, rate) for arm, own in rates.items() for rate in own], plan.tune_seeds)
    found: dict[str, dict[float, float]] = {arm: {} for arm in plan.arms}
    for (arm, rate), own in records.items():
        values = [value for record in own for value in record.of(plan.endpoint).values()]
        costs = [_sign(plan) * value if math.isfinite(value) else math.inf for value in values]
        found[arm][rate or 0.0] = sum(costs) / len(costs)
    return found


def _sign(plan: Plan) -> int:
    return 1 if plan.direction == "lower" else -1


def _list(rates: "set[float] | tuple[float, ...]") -> str:
    return ", ".join(f"{one:.4g}" for one in sorted(rates))
