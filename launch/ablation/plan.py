"""What an ablation declares before it runs: a frozen value, read from a Python file that holds plain values."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from eval.verdict.declared import Contrast, Declared
from launch.ablation.reading import RATE, checked, read_file, share
from launch.configs import Value, load
from model.errors import UserError
from train.run.files.json_files import dumps
from train.run.files.learned import FREE, flatten

# Which checkpoints are kept, and what is written after a run, is no matter of its numbers and curves: a grid that a
# full disk has stopped goes on with fewer. How often it is logged and measured is, of its curves.
_UNSEEN = (*FREE, "train.checkpoint_every", "train.keep_last", "train.keep_best", "train.prompt")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked, of which arms, how it is measured, and when it is said to matter.

    arms: name to overrides; the first is the baseline. smallest: D in units of the endpoint, or a text such as '1 %' of
    the baseline's mean in the pilot. looks: seeds by each look, ascending. learning_rates: of each arm, ascending; none
    where nothing is tuned. pack: the seeds of one program, at most. waived: gate to reason.
    """

    name: str
    question: str
    factor: tuple[str, ...]
    arms: Mapping[str, Mapping[str, Value]]
    smallest: float | str
    seeds: tuple[int, ...]
    pilot_seeds: tuple[int, ...] = ()
    tune_seeds: tuple[int, ...] = ()
    base: str = "base"
    shared: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    contrast: str = "difference"
    endpoint: str = "val/loss"
    direction: str = "lower"
    success: float | None = None
    alpha: float = 0.05
    looks: tuple[int, ...] = ()
    learning_rates: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    budget: str = "parameters"
    match: str = ""
    pack: int = 8
    waived: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """The name of the arm that all others are compared with."""
        return next(iter(self.arms))

    @property
    def relative(self) -> float | None:
        """The share of the baseline's mean that the smallest effect is, .01 for '1 %'; None where it is a number."""
        return share(self.smallest)

    @property
    def contrasts(self) -> tuple[Contrast, ...]:
        """Each arm against the baseline; of an interaction, (both - b) - (a - base)."""
        if self.contrast == "interaction":
            base, a, b, both = self.arms
            return (Contrast("interaction", (both, base), (a, b)),)
        return tuple(Contrast(arm, (arm,), (self.baseline,)) for arm in self.arms if arm != self.baseline)

    def runs(self, arm: str) -> int:
        """How many seeds of an arm are trained, in all phases, every look taken; a sensitivity trains all rates."""
        rates, seeds = len(self.learning_rates.get(arm, ())), len(self.pilot_seeds) + len(self.seeds)
        return rates * seeds if self.contrast == "sensitivity" else rates * len(self.tune_seeds) + seeds

    @property
    def judged(self) -> str:
        """What the numbers are of that are judged: the endpoint, or its sensitivity."""
        return f"the sensitivity of {self.endpoint}" if self.contrast == "sensitivity" else self.endpoint

    def declared(self, smallest: float) -> Declared:
        """What the judge is told, with D as a number.

        Raises:
            UserError: it cannot be judged.
        """
        said = (self.judged, self.direction, smallest, self.alpha, self.looks, self.success)
        return Declared(self.question, self.contrasts, *said)

    @functools.cached_property
    def resolved(self) -> dict[str, Any]:
        """All that is declared, as plain values, with every key of every arm's config but the places of the text."""
        configs = {arm: learned(config_of(self, arm)) for arm in self.arms}
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        own |= {"arms": {arm: dict(sorted(keys.items())) for arm, keys in self.arms.items()}}
        own |= {name: dict(sorted(own[name].items())) for name in ("shared", "learning_rates", "waived")}
        own["shared"] = {key: value for key, value in own["shared"].items() if key not in _UNSEEN}
        return own | {"configs": configs}

    @functools.cached_property
    def hash(self) -> str:
        """Of all that is declared but the name of its file: a plan that was changed or extended is another plan."""
        return digest({key: value for key, value in self.resolved.items() if key not in ("name", "base")})


def digest(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()[:16]


def config_of(
    plan: Plan,
    arm: str,
    learning_rate: float | None = None,
    seeds: int = 1,
    first_seed: int = 0,
) -> ConfigDict:
    """The config of `seeds` seeds of an arm as one population, from `first_seed` on; seed i reads its own order, i.

    Where the plan shares the order (`data.order=shared`), all seeds keep its `data.seed`. Without a learning rate, the
    arm has that of its config.

    Raises:
        UserError: a key or a value that a config does not take.
    """
    changes: dict[str, Value] = {**plan.shared, **plan.arms[arm]}
    if learning_rate is not None:
        changes[RATE] = learning_rate
    changes |= {"train.seed": first_seed, "train.seeds": seeds}
    config = load(plan.base, **changes)
    if config.data.order == "shared":
        return config
    if "data.seed" in changes:
        raise UserError(
            f"plan {plan.name}: data.seed of {arm} is that of each seed, unless data.order is shared: leave it."
        )
    return load(plan.base, **changes, **{"data.seed": first_seed})


def packs(plan: Plan, seeds: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The seeds in programs: consecutive ones, at most `plan.pack`, none across the end of a look."""
    found: list[tuple[int, ...]] = []
    for place, seed in enumerate(seeds):
        own = seeds == plan.seeds and place in plan.looks
        if found and not own and seed == found[-1][-1] + 1 and len(found[-1]) < plan.pack:
            found[-1] += (seed,)
        else:
            found.append((seed,))
    return found


def learned(config: ConfigDict) -> dict[str, Any]:
    """Every key but where the text lies, which its fingerprint answers for, and what leaves a run's results alone."""
    return {key: value for key, value in flatten(config).items() if key not in _UNSEEN}


def load_plan(path: str | Path, **overrides: Value) -> Plan:
    """The plan of a file; `overrides`, {'train.steps': 9}, are shared by all of its arms, and make it another plan.

    Raises:
        UserError: there is no such file, it defines no `get_plan`, or a value of it cannot be used.
    """
    values = read_file(path)
    shared = values.get("shared", {})
    if overrides and isinstance(shared, Mapping):
        values["shared"] = {**shared, **overrides}
    return make_plan(Path(path).stem, values)


def make_plan(name: str, values: Mapping[str, Any]) -> Plan:
    """The plan that plain values are.

    Raises:
        UserError: a key is unknown or missing, a value cannot be used, or two arms are the same.
    """
    fields = [field for field in dataclasses.fields(Plan) if field.name != "name"]
    missing, defaults = dataclasses.MISSING, dict[str, Any]()
    for field in fields:
        made = ... if field.default_factory is missing else field.default_factory()
        defaults[field.name] = made if field.default is missing else field.default
    plan = Plan(name, **checked(name, values, defaults))
    plan.declared(1.0 if isinstance(plan.smallest, str) else plan.smallest)  # what the judge refuses, before any run
    configs = {arm: learned(config_of(plan, arm)) for arm in plan.arms}
    for one, other in itertools.combinations(configs, 2):
        if configs[one] == configs[other]:
            raise UserError(f"plan {name}: the arms {one} and {other} are the same config: change a key of one.")
    for key in plan.factor:
        if key not in configs[plan.baseline]:
            raise UserError(f"plan {name}: factor: {key} is no key of a config; see launch.train --help.")
    return plan
