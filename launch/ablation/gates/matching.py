"""A size that is solved for, so that all arms cost the same."""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from launch.ablation.gates.budget import AMOUNTS
from launch.ablation.plan import Plan, config_of
from launch.ablation.reading import nearest
from model.errors import UserError
from train.experiment import make_model_config

TOLERANCE = 0.01
KEYS = {"mlp_width": "model.mlp_width", "width": "model.width", "depth": "model.num_layers", "steps": "train.steps"}
_MOST = 64  # times the baseline's size, at most


def with_match(plan: Plan, match: str) -> Plan:
    """The plan that matches by this key, as `--match` says.

    Raises:
        UserError: there is no such key.
    """
    if match not in KEYS:
        raise UserError(f"--match={match}: there is no such key to solve for; {nearest(match, KEYS)}.")
    return dataclasses.replace(plan, match=match)


def matched(plan: Plan) -> Plan:
    """The plan in which `plan.match` of each arm but the baseline is such that its budget is nearest to the baseline's.

    The key that is solved for is declared from then on. An arm that is within 1 % as it is stays.

    Raises:
        UserError: no value brings the budget within 1 %; says the nearest.
    """
    if not plan.match:
        return plan
    key, of = KEYS[plan.match], AMOUNTS[plan.budget]
    target = of(config_of(plan, plan.baseline))
    arms = dict(plan.arms)
    for arm, keys in plan.arms.items():
        config = config_of(plan, arm)
        if arm != plan.baseline and abs(of(config) / target - 1) > TOLERANCE:
            arms[arm] = {**keys, key: _solved(plan, arm, config, of, target)}
    factor = plan.factor if arms == plan.arms else (*dict.fromkeys((*plan.factor, key)),)
    return dataclasses.replace(plan, arms=arms, factor=factor)


def _solved(plan: Plan, arm: str, config: ConfigDict, of: Callable[[ConfigDict], float], target: float) -> int:
    key, unit, least = KEYS[plan.match], _unit(plan.match, config), _least(plan.match, config)

    def found(number: int) -> float:
        changed = dataclasses.replace(plan, arms={**plan.arms, arm: {**plan.arms[arm], key: unit * number}})
        return of(config_of(changed, arm))

    start = max(_size(plan.match, config) // unit, least)
    number, reached = search(found, target, (least, start, _MOST * start))
    if abs(reached / target - 1) > TOLERANCE:
        raise UserError(
            f"--match={plan.match}: no --config.{key} brings the {plan.budget} of {arm} within 1 % of the baseline's "
            f"{target:.6g}; the nearest is {unit * number}, with {reached:.6g} ({reached / target - 1:+.1%}): match "
            "another key, or waive the gate 'budget' with a reason."
        )
    return unit * number


def search(found: Callable[[int], float], target: float, among: tuple[int, int, int]) -> tuple[int, float]:
    """(the number whose `found` is nearest to the target, that), of a function that rises.

    By interpolation, which needs few calls where it rises like a line or a parabola, and halves else. `among`: the
    least, one to begin with, the most.
    """
    low, high, most = among
    known = {number: found(number) for number in {low, high}}
    while known[high] < target and high < most:
        low, high = high, min(2 * high, most)
        known[high] = found(high)
    turn = 0
    while high - low > 1 and known[low] < target < known[high]:
        share = 0.5 if turn % 3 == 2 else (target - known[low]) / (known[high] - known[low])
        middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        known[middle] = found(middle)
        low, high = (middle, high) if known[middle] <= target else (low, middle)
        turn += 1
    best = min(known, key=lambda number: abs(known[number] - target))
    return best, known[best]


def _size(match: str, config: ConfigDict) -> int:
    section, _, name = KEYS[match].partition(".")
    return int(config[section][name]) or 4 * int(config.model.width)  # an MLP's width of 0


def _unit(match: str, config: ConfigDict) -> int:
    """What a size is a multiple of: heads share the width evenly, and positions turn pairs of each."""
    model = config.model
    return 2 * model.get("num_heads", 1) if match == "width" and not model.get("head_width", 0) else 1


def _least(match: str, config: ConfigDict) -> int:
    """The smallest size in units; a stack holds each cycle of its layers once."""
    stacks = [site.stack.unit for site in make_model_config(config, 256).sites.values()]
    return max(stacks, default=1) if match == "depth" else 1
