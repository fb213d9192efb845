"""A whole ablation on a slice: each of its programs is compiled once, however often it runs."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from launch.ablation.plan import Plan, config_of, digest, learned, packs
from launch.ablation.reading import RATE
from launch.planning.chips import Slice
from launch.planning.telling import QUICK, gib, of_run

_NUMBERS = RATE, "train.seed", "data.seed"  # which change neither the time nor the memory of a program


@dataclasses.dataclass
class Program:
    """A population of seeds that is trained as one, the arms that train it, and how often it runs in all phases, every
    look taken.
    """

    config: ConfigDict
    arms: list[str] = dataclasses.field(default_factory=list)
    runs: int = 0


def programs(plan: Plan) -> list[Program]:
    """Those of a plan that differ in more than learning rates and the numbers of their seeds."""
    found: dict[str, Program] = {}
    for arm in plan.arms:
        for size, times in _populations(plan, arm):
            config = config_of(plan, arm, seeds=size)
            keys = {key: value for key, value in learned(config).items() if key not in _NUMBERS}
            one = found.setdefault(digest(keys), Program(config))
            one.runs += times
            one.arms = [*dict.fromkeys((*one.arms, arm))]
    return [*found.values()]


def _populations(plan: Plan, arm: str) -> Iterator[tuple[int, int]]:
    """How many seeds a population of an arm has, and at how many learning rates it is trained."""
    rates = len(plan.learning_rates.get(arm, ()))
    tuned, judged = (0, rates) if plan.contrast == "sensitivity" else (rates, 1)
    for seeds, times in ((plan.tune_seeds, tuned), (plan.pilot_seeds, judged), (plan.seeds, judged)):
        yield from ((len(own), times) for own in packs(plan, seeds) if times)


def ablation(
    plan: Plan, where: Slice, planned: Callable[[ConfigDict], dict[str, Any]], say: Callable[[str], None]
) -> dict[str, Any]:
    """What all runs of a plan take on a slice, one after the other: of each program what `planned` says, its `arms` and
    how often it `runs`; whether all fit, and the sums. Each is told as it comes.

    Raises:
        UserError: a program cannot be trained there.
    """
    every, found = programs(plan), list[dict[str, Any]]()
    say(f"plan {plan.name} on {where.slices} x {where.topology}: {len(every)} programs")
    say(_LINE.format("seeds", "runs", "steps", "fits", "memory", "of", "s a step", "chip-hours", "arms"))
    for one in every:
        found.append({"arms": one.arms, "runs": one.runs, "seeds": one.config.train.seeds} | planned(one.config))
        say(_line(found[-1]))
    sums = {name: _sum(found, name) for name in ("chip_hours", "cost", "energy_kwh")}
    runs = sum(one.runs for one in every)
    if any("effort" in one for one in found):
        say(f"  QUICK       {QUICK}")
    say(f"  all         {runs:,} runs: {of_run(found[0] | sums)}; without evaluations, and rates beyond a grid")
    return {
        "plan": plan.name,
        "question": plan.question,
        "topology": where.topology,
        "slices": where.slices,
        "fits": all(one["fits"] for one in found),
        "runs": runs,
        **sums,
        "programs": found,
    }


_LINE = "{:>7}{:>6}{:>9}{:>6}{:>12}{:>12}{:>11}{:>12}  {}"


def _line(one: dict[str, Any]) -> str:
    """A program in words; chip-hours are those of all its runs."""
    memory, hours = (gib(one[name]) for name in ("needed_bytes", "hbm_bytes")), one["runs"] * one["chip_hours"]
    numbers = one["seeds"], one["runs"], f"{one['steps']:,}", "yes" if one["fits"] else "NO"
    times = f"{one['model']['seconds_per_step']:.3g}", f"{hours:,.3g}"
    return _LINE.format(*numbers, *memory, *times, ", ".join(one["arms"]))


def _sum(found: list[dict[str, Any]], name: str) -> float | None:
    """Of all runs; None where it is not known of one."""
    values = [one[name] for one in found]
    return None if None in values else sum(one["runs"] * one[name] for one in found)
