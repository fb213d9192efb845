"""The fastest plan by the model of time, among meshes, remat policies, accumulations and batches."""

import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from launch.planning.candidates import Candidate, allowed, candidate
from launch.planning.chips import Slice
from launch.planning.compiled.facts import LABELS
from launch.planning.telling import gib
from model.errors import UserError
from train.experiment import make_model_config
from train.limits import check_config
from train.tasks.table import make_task

Known = Callable[[ConfigDict], dict[str, Any]]
Plan = Callable[[ConfigDict, float], dict[str, Any]]  # of a config, in so many seconds
Tried = tuple[Candidate, dict[str, Any]]
SHOWN = 5  # of the best


class Search:
    """A search on a slice, from a config on: its candidates, what was tried of them, and how many were not and why.

    known: what is said of a config before anything is compiled. batches: sizes of a batch that may be taken, by which
    it is learned otherwise; none: the config's own.

    Raises:
        UserError: the config cannot be trained on any devices, or on no mesh of these.
    """

    def __init__(self, config: ConfigDict, where: Slice, known: Known, batches: Sequence[int] = ()):
        check_config(config)
        model = make_model_config(config, make_task(config).vocab_size(config), LABELS)
        every = allowed(config, where, model, batches or (config.data.batch_size,))
        if not every:
            raise UserError(
                f"--search: no mesh of the {where.devices} devices of {where.topology} divides the sizes of this "
                "config; change --config.data.batch_size or --topology."
            )
        facts = known(every[0][0])
        self._tokens = config.train.seeds * config.data.batch_size * config.data.length
        those = [candidate(one, where, facts, model) for one in every]
        self.where, self.hbm, self.tried, self.ended = where, facts["hbm_bytes"], list[Tried](), ""
        self.nearest = min(those, key=lambda one: one.least_bytes)
        small = [one for one in those if one.least_bytes <= self.hbm]
        self.counts = {"candidates": len(those), "too_large": len(those) - len(small)}
        self.counts |= {"refused": 0, "keep_more": 0, "slower": 0}
        self._more = dict[str | None, float]()  # by remat policy, how much more its last try needed than was guessed
        self.left = sorted(small, key=self._order)

    @property
    def best(self) -> Sequence[Tried]:
        """What fits of what was tried, from the fastest on."""
        return sorted((one for one in self.tried if one[1]["fits"]), key=lambda one: _a_token(one[1]))

    def run(self, plan: Plan, seconds: float, say: Callable[[str], None]) -> None:
        """Tries one after the other, and tells each, until none is left that may be faster, or the time is over."""
        end, self.ended = time.monotonic() + seconds, "interrupted"
        say(
            f"{self.counts['candidates']} meshes x remat x accumulations x batches are allowed; "
            f"{self.counts['too_large']} need more memory for their state alone; the rest as they are guessed:"
        )
        while self.left and (rest := end - time.monotonic()) > 0:
            one = self.left.pop(0)
            try:
                found = plan(one.config, rest)
            except subprocess.TimeoutExpired:
                self.left.insert(0, one)
                break
            except UserError as error:
                say(f"  refused {flags(one)}: {error}")
                self.counts["refused"] += 1
                continue
            self.tried.append((one, found))
            say(_line(one, found))
            self._drop(one, found)
        self.ended = "time" if self.left else "complete"

    def _order(self, one: Candidate) -> tuple[Any, ...]:
        """As it is, it is a measure for all others; then as they are guessed, for bounds alone drop a candidate."""
        needed = one.guess_bytes * self._more.get(one.config.model.get("remat"), 1)
        return bool(one.changes), needed > self.hbm, one.guess, len(one.changes)

    def _drop(self, one: Candidate, found: dict[str, Any]) -> None:
        self._more[one.config.model.get("remat")] = found["needed_bytes"] / one.guess_bytes
        self.left.sort(key=self._order)
        if not found["fits"]:
            self._keep("keep_more", [other for other in self.left if not other.keeps_more(one)])
        else:
            most = _a_token(found) / found["model"].get("factor", 1)  # which bounds do not have
            self._keep("slower", [other for other in self.left if other.least < most])

    def _keep(self, reason: str, left: list[Candidate]) -> None:
        self.counts[reason] += len(self.left) - len(left)
        self.left = left

    def told(self) -> str:
        """How the search ended, and the best few."""
        counts = (
            f"{len(self.tried)} tried; not tried: {self.counts['slower']} that cannot be faster, "
            f"{self.counts['keep_more']} that keep more than one that does not fit, {len(self.left)} for want of time"
        )
        lines = [f"{_ENDS[self.ended]}: {counts}"]
        if not self.best:
            return "\n".join([*lines, self._nearest()])
        lines.append(_HEAD)
        lines += [_line(*one) for one in self.best[:SHOWN]]
        (first, found), as_is = self.best[0], [found for one, found in self.tried if not one.changes]
        if as_is and as_is[0]["fits"] and first.changes:
            lines.append(f"a token takes {_a_token(found) / _a_token(as_is[0]):.3g} of the time of the config as it is")
        if "data.batch_size" in first.changes:
            times = found["tokens_per_step"] / self._tokens
            lines.append(
                f"its batch is another than the config's, {times:.3g} times the tokens a step, and learns otherwise"
            )
        return "\n".join([*lines, f"the fastest by the model of time: {flags(first)}"])

    def _nearest(self) -> str:
        """What comes nearest, where nothing fits."""
        if not self.tried:
            need = f"{gib(self.nearest.least_bytes)} at least of {gib(self.hbm)}: {flags(self.nearest)}"
            return f"nothing was compiled; the least memory that any candidate may do with: {need}"
        one, found = min(self.tried, key=lambda one: float(one[1]["needed_bytes"]))
        return f"nothing fits; the nearest needs {gib(found['needed_bytes'])} of {gib(self.hbm)}: {flags(one)}"

    def resolved(self) -> dict[str, Any]:
        """The best plan, if there is one, with its `changes` and what the search came to, `search`."""
        tried = [_short(*one) for one in self.tried]
        found: dict[str, Any] = {"topology": self.where.topology, "slices": self.where.slices, "fits": False}
        if self.best:
            one, plan = self.best[0]
            found = plan | {"changes": one.changes, "flags": _words(one)}
        return found | {"search": {"ended": self.ended, **self.counts, "left": len(self.left), "tried": tried}}


_ENDS = {
    "complete": "the search is complete",
    "time": "the time of the search is over, and the same command goes on",
    "interrupted": "the search is stopped, and the same command goes on",
}
_LINE = "  {:<6}{:>10}{:>12}{:>12}{:>10}  {}"
_HEAD = _LINE.format("fits", "s a step", "tokens/s", "memory", "sent GB", "changes")


def flags(one: Candidate) -> str:
    """What is changed, as it is given to a command."""
    return " ".join(_words(one)) or "(as it is)"


def _words(one: Candidate) -> list[str]:
    return [f"--config.{key}={value}" for key, value in one.changes.items()]


def _line(one: Candidate, found: dict[str, Any]) -> str:
    seconds, fits = found["model"]["seconds_per_step"], "yes" if found["fits"] else "no"
    sent = "?" if found.get("collective_bytes") is None else f"{found['collective_bytes'] / 1e9:.1f}"
    speed = f"{1 / _a_token(found):,.0f}" if found["fits"] else "-"
    return _LINE.format(fits, f"{seconds:.3g}", speed, gib(found["needed_bytes"]), sent, flags(one))


def _a_token(found: dict[str, Any]) -> float:
    """Seconds of a token by the model of time."""
    return float(found["model"]["seconds_per_step"]) / int(found["tokens_per_step"])


def _short(one: Candidate, found: dict[str, Any]) -> dict[str, Any]:
    kept = {name: found.get(name) for name in ("fits", "needed_bytes", "collective_bytes", "tokens_per_step")}
    return {"changes": one.changes, **kept, "seconds_per_step": found["model"]["seconds_per_step"]}
