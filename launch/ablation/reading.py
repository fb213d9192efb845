"""A plan's plain values, read from a Python file by its path, and refused where they cannot be a plan, whatever is
waived; what depends on the configs is refused by `plan.py`, what may be waived by the gates.
"""

import difflib
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from eval.evaluators import endpoints
from launch.configs import run_file
from model.errors import UserError
from train.run.files.naming import check_length

RATE = "optimizer.learning_rate"
CHOICES = {
    "direction": ("lower", "higher"),
    "contrast": ("difference", "interaction", "sensitivity"),
    "budget": ("parameters", "flops", "tokens"),
    "match": ("", "mlp_width", "width", "depth", "steps"),
}
# Keys of a config that a plan sets by its own.
OWN = {"train.seed": "seeds", "train.seeds": "pack"}
SEEDS = ("tune_seeds", "pilot_seeds", "seeds")
_LISTS = ("factor", "looks", *SEEDS)
_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(_LISTS, (list, tuple, range)),
    **dict.fromkeys(("arms", "shared", "waived"), (dict,)),
    "learning_rates": (list, tuple, dict),
    "smallest": (int, float, str),
    "success": (int, float, type(None)),
    "alpha": (float,),
    "pack": (int,),
}
_NAME = re.compile(r"[\w.+-]+")
_SHARE = re.compile(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]-?[0-9]+)?) ?%")


def share(smallest: float | str) -> float | None:
    """.01 for '1 %'; None for what is no share."""
    found = _SHARE.fullmatch(smallest) if isinstance(smallest, str) else None
    return float(found[1]) / 100 if found else None


def nearest(word: str, known: Collection[str]) -> str:
    """'the nearest is ...', or what there is."""
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"the nearest is {near[0]}" if near else f"there are: {', '.join(filter(None, known))}"


def read_file(path: str | Path) -> dict[str, Any]:
    """What `get_plan()` of a file returns.

    Raises:
        UserError: there is no such file, or it is no Python, or defines no `get_plan`, or that returns no dict.
    """
    check_length("--plan", path)
    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        raise UserError(f"--plan={path}: there is no such Python file; give one such as configs/ablations/NAME.py.")
    module = run_file(file)
    if not hasattr(module, "get_plan"):
        raise UserError(f"--plan={path}: a plan defines get_plan(), and this file does not.")
    values = module.get_plan()
    if not isinstance(values, Mapping):
        raise UserError(f"--plan={path}: get_plan() must return a dict of plain values, and not {values!r}.")
    return dict(values)


def checked(name: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all of a plan's keys, of their types: lists are tuples, and each arm has its learning rates.

    defaults: of every key; Ellipsis where there is none.

    Raises:
        UserError: a key is unknown or missing, or a value cannot be used.
    """
    for key in values:
        if key not in defaults:
            raise UserError(f"plan {name}: {key} is no key of a plan; {nearest(key, defaults)}.")
    for key, default in defaults.items():
        if default is ... and key not in values:
            text = "declare D, the smallest effect of interest, before the runs" if key == "smallest" else "give it"
            raise UserError(f"plan {name}: {key} is missing: {text}.")
    plan = {**defaults, **{key: _typed(name, key, value) for key, value in values.items()}}
    _check_arms(name, plan)
    plan["learning_rates"] = _rates(name, plan)
    plan["looks"] = plan["looks"] or (len(plan["seeds"]),)
    _check_choices(name, plan)
    _check_size(name, plan)
    _check_seeds(name, plan)
    return plan


def _typed(name: str, key: str, value: Any) -> Any:
    """The value; a text where several keys may stand is one of them."""
    if key == "factor" and isinstance(value, str):
        return (value,)
    wanted = _KINDS.get(key, (str,))
    member = {"factor": str, "learning_rates": (int, float)}.get(key, int)
    good = isinstance(value, wanted) and not isinstance(value, bool)
    if good and isinstance(value, list | tuple | range):
        good = all(isinstance(one, member) and not isinstance(one, bool) for one in value)  # type: ignore[arg-type]
        value = tuple(value)
    if not good:
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in wanted)
        raise UserError(f"plan {name}: {key}={value!r} must be of type {names}, with members of the kind it says.")
    return value


def _check_arms(name: str, plan: Mapping[str, Any]) -> None:
    arms = plan["arms"]
    if len(arms) < 2:
        raise UserError(f"plan {name}: arms={[*arms]} must be two or more: the first is the baseline.")
    for arm, keys in arms.items():
        if not (isinstance(arm, str) and _NAME.fullmatch(arm) and isinstance(keys, Mapping)):
            raise UserError(
                f"plan {name}: arms: {arm!r} must be a name of letters, digits, '.', '+', '-' or '_', with a dict of"
                " the keys that it changes."
            )
    _check_keys(name, plan)
    if plan["contrast"] == "interaction" and len(arms) != 4:
        raise UserError(f"plan {name}: an interaction has four arms, base, a, b and both, and not {[*arms]}.")
    if not plan["factor"]:
        raise UserError(f"plan {name}: factor is empty: name the keys in which the arms may differ.")


def _check_keys(name: str, plan: Mapping[str, Any]) -> None:
    """The keys that arms and `shared` change are plain values, and none that the plan itself sets."""
    for owner, keys in {"shared": plan["shared"], **{f"arm {arm}": keys for arm, keys in plan["arms"].items()}}.items():
        for key, value in keys.items():
            if type(key) is not str or type(value) not in (int, float, str, bool):
                raise UserError(
                    f"plan {name}: {owner}: {key!r}={value!r} must be a key's name, and a number or a text."
                )
            if key in OWN or key == RATE and plan["learning_rates"]:
                by = OWN.get(key, "learning_rates")
                raise UserError(f"plan {name}: {owner} sets {key}, which {by} sets: leave one of them out.")


def _rates(name: str, plan: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """{arm: its learning rates, ascending}; {} where there are none."""
    given, arms = plan["learning_rates"], plan["arms"]
    rates = given if isinstance(given, Mapping) else dict.fromkeys(arms, given) if given else {}
    for arm in rates:
        if arm not in arms:
            raise UserError(f"plan {name}: learning_rates: {arm} is no arm; {nearest(arm, arms)}.")
    if rates and (missing := [arm for arm in arms if arm not in rates]):
        raise UserError(f"plan {name}: learning_rates has none for {', '.join(missing)}: every arm has the same grid.")
    found = {arm: _grid(rates[arm]) for arm in arms if rates}
    for arm, grid in found.items():
        if len(grid) < 2:
            raise UserError(
                f"plan {name}: learning_rates={rates[arm]!r} of {arm} must be two or more numbers above 0: one "
                "alone is no grid."
            )
    if plan["contrast"] == "sensitivity" and not found:
        raise UserError(f"plan {name}: a sensitivity is over learning_rates, and there are none: give them.")
    if plan["contrast"] == "sensitivity" and (plan["endpoint"], plan["direction"]) != ("val/loss", "lower"):
        raise UserError(
            f"plan {name}: a sensitivity is of val/loss, lower, and endpoint is {plan['endpoint']!r}: leave it."
        )
    if found and plan["contrast"] != "sensitivity" and not plan["tune_seeds"]:
        raise UserError(f"plan {name}: learning_rates are tuned on seeds of their own: give tune_seeds.")
    return found


def _grid(given: Any) -> tuple[float, ...]:
    """The numbers in ascending order; () where they are no list of numbers above 0."""
    good = isinstance(given, list | tuple) and all(type(one) in (int, float) and 0 < one < math.inf for one in given)
    return tuple(sorted({float(one) for one in given})) if good else ()


def _check_choices(name: str, plan: Mapping[str, Any]) -> None:
    for key, allowed in CHOICES.items():
        if plan[key] not in allowed:
            raise UserError(f"plan {name}: {key}={plan[key]!r} is unknown; {nearest(plan[key], allowed)}.")
    if plan["endpoint"] not in endpoints():
        raise UserError(
            f"plan {name}: endpoint={plan['endpoint']!r} is not measured; {nearest(plan['endpoint'], endpoints())}."
        )
    if not plan["question"].strip():
        raise UserError(f"plan {name}: question is empty: say in one sentence what is asked.")
    if not 0 < plan["alpha"] < 1:
        raise UserError(f"plan {name}: alpha={plan['alpha']} must be between 0 and 1, such as 0.05.")
    if plan["pack"] < 1:
        raise UserError(f"plan {name}: pack={plan['pack']} must be at least 1: the seeds of one program.")
    for gate, reason in plan["waived"].items():
        if not (isinstance(reason, str) and reason.strip()):
            raise UserError(f"plan {name}: waived: {gate} has no reason: the page shows why.")


def _check_size(name: str, plan: Mapping[str, Any]) -> None:
    given = plan["smallest"]
    size = share(given) if isinstance(given, str) else given
    if size is None or not 0 < size < math.inf:
        raise UserError(f"plan {name}: smallest={given!r} must be a number above 0, or a share such as '1 %'.")
    if isinstance(given, str) and plan["success"] is not None:
        raise UserError(
            f"plan {name}: smallest={given!r} must be a number, a difference of rates, where success is asked."
        )
    if isinstance(given, str) and not plan["pilot_seeds"]:
        raise UserError(
            f"plan {name}: smallest={given!r} is a share of the baseline's mean in the pilot: give pilot_seeds."
        )


def _check_seeds(name: str, plan: Mapping[str, Any]) -> None:
    for key in SEEDS:
        seeds = plan[key]
        if [*seeds] != sorted({*seeds}) or any(not 0 <= seed < 2**31 for seed in seeds):
            raise UserError(
                f"plan {name}: {key}={[*seeds]} must be different numbers of at least 0, rising: looks take the first."
            )
    looks, count = plan["looks"], len(plan["seeds"])
    rising = all(early < late for early, late in zip(looks, looks[1:], strict=False))
    if len(looks) > 2 or not rising or looks[0] < 2 or looks[-1] != count:
        raise UserError(
            f"plan {name}: looks={[*looks]} must be one or two numbers of seeds, rising from 2 to all {count} of seeds."
        )
