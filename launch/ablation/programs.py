"""The unit that is addressed, run, resumed and verified: a program, some seeds of one config, trained as one."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import model
from eval.verdict.declared import LARGEST
from launch.ablation.gates.budget import data_of
from launch.ablation.plan import digest, learned
from launch.configs import load
from launch.train import fit
from model.errors import Diverged, UserError
from train.devices.placing import on_host
from train.devices.together import agree, meet
from train.run.files.disk import full_disk
from train.run.files.json_files import loads, read_cache, read_checked, read_lines, write
from train.run.files.learned import flatten
from train.run.files.lock import FolderLock
from train.run.files.named_arrays import plain
from train.run.folder import packages
from train.run.signals import Stopped, stop_signals
from train.state import State

# What says how fast a run was, or is the same for all seeds: no result.
_NO_RESULTS = (
    "train/tokens_per_second",
    "train/matrix_share",
    "train/wait_share",
    "train/peak_bytes",
    "train/learning_rate",
)
# The judge reads what is finished: its words may change without a run being another.
_CODE, _NO_CODE = ("model", "train", "eval", "launch/train.py"), "eval/verdict"


@dataclasses.dataclass(frozen=True)
class Program:
    """A config with its population of seeds, and the digests of what it is computed by and from.

    made: 'code', 'packages', 'data'. Its key is the address of its folder in the store.
    """

    config: ConfigDict
    made: Mapping[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits of all that its numbers depend on; where the text lies does not matter."""
        return digest({"config": dict(sorted(learned(self.config).items())), "made": dict(self.made)})

    @property
    def seeds(self) -> tuple[int, ...]:
        """Its seeds, in the order of the population."""
        first = self.config.train.seed
        return tuple(range(first, first + self.config.train.seeds))

    def checked(self) -> "Program":
        """Itself, where this process computes what it says.

        Raises:
            UserError: the code, the packages or the text are others here.
        """
        now = address(self.config)
        if other := [name for name, value in now.made.items() if value != self.made[name]]:
            raise UserError(
                f"program {self.key}: {' and '.join(other)} of this process are not those that it was made for: use the"
                " same code, packages and text, or start the plan again, which makes other programs."
            )
        return self


@dataclasses.dataclass(frozen=True)
class Record:
    """What a program has left: of each metric one value for each seed, at the last step; None is not finite.

    curves: metric to step to values. failed: seed, as text, to the sentence it ended with. bits: of all parameters at
    the last step. alone: the programs of single seeds that these values are of, because one of the population diverged
    and ended all of it. where: the machine, its flags, and on how many windows it was measured.
    """

    key: str
    seeds: tuple[int, ...]
    values: Mapping[str, list[float | None]]
    curves: Mapping[str, Mapping[str, list[float | None]]]
    failed: Mapping[str, str]
    bits: str
    alone: tuple[str, ...]
    made: Mapping[str, Any]
    where: Mapping[str, Any]
    seconds: float

    def of(self, metric: str) -> dict[int, float]:
        """{seed: value at the last step}; infinite for a seed that failed, or whose value is too large to be judged."""
        given = self.values.get(metric, [None] * len(self.seeds))
        values = (math.inf if one is None or abs(one) > LARGEST else one for one in given)
        return dict(zip(self.seeds, values, strict=True))

    @property
    def first(self) -> dict[int, float]:
        """{seed: its training loss at step 1, of the first parameters}; a seed that failed alone left none."""
        given = self.curves.get("train/loss", {}).get("1", [None] * len(self.seeds))
        return {seed: one for seed, one in zip(self.seeds, given, strict=True) if one is not None}

    @property
    def result(self) -> dict[str, Any]:
        """What is the same, bit for bit, whenever and however often the program runs: all but the seconds."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "seconds"}


def address(config: ConfigDict) -> Program:
    """The program of a config, by the code and packages of this process, and by the text as it is now.

    Raises:
        UserError: the data set cannot be had.
    """
    made = {"code": code_digest(), "packages": packages(), "data": data_of(config).fingerprint}
    return Program(config, made)


@functools.cache
def code_digest(parts: tuple[str, ...] = _CODE, without: str = _NO_CODE) -> str:
    """Of the files by which a run's numbers are computed, or of other parts of heed, and of their names."""
    root = Path(model.__file__).parents[1]
    files = sorted(file for part in parts for file in ([root / part] if ".py" in part else (root / part).rglob("*.py")))
    known = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix()
        if not (without and name.startswith(without)):
            known.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return known.hexdigest()[:16]


def where() -> dict[str, str]:
    """What else the last bits depend on: the kind of device, and of random numbers."""
    return {"device": jax.devices()[0].device_kind, "prng": str(jax.config.values["jax_default_prng_impl"])}


class Store:
    """The programs of a folder: each has its own, `<key>/`, with program.json, its run, a log, and record.json."""

    def __init__(self, folder: Path):
        self.folder = folder

    def place(self, key: str) -> Path:
        """The folder of a program."""
        return self.folder / key

    def record(self, key: str) -> Record | None:
        """What a program has left, if it has ended; a file that is damaged is set aside, and made again."""
        file = self.place(key) / "record.json"
        values = read_cache(file, _check_record)
        return None if values is None else _record(values)

    def ended(self, program: Program) -> Record:
        """What a program has left that has ended."""
        found = self.record(program.key)
        assert found is not None, program.key
        return found

    def write(self, program: Program) -> None:
        """Writes what a process needs in order to run the program."""
        self.place(program.key).mkdir(parents=True, exist_ok=True)
        write(self.place(program.key) / "program.json", {"config": flatten(program.config), "made": dict(program.made)})

    def program(self, key: str) -> Program:
        """A program that was written.

        Raises:
            UserError: the file is not there, or damaged.
        """
        try:
            found = read_checked(self.place(key) / "program.json", _check_program)
        except ValueError as error:
            raise UserError(
                f"program {key} of {self.folder}: {error}: start its plan again, which writes it."
            ) from error
        return Program(load("base", **found["config"]), found["made"])

    def run(self, program: Program) -> Record:
        """What the program leaves: it begins, goes on, or has ended already; of several processes, in all of them.

        Where a seed of a population diverges, which ends all of it, each of its seeds runs alone instead.

        Raises:
            UserError: it cannot be run, or another process runs it.
            Stopped: this process was told to stop; the program goes on when it is run again.
        """
        found, folder, began = self.record(program.key), self.place(program.key), time.perf_counter()
        agree(f"what is seen of {folder / 'record.json'}", str(found is not None))
        if found is not None:
            return found
        first = jax.process_index() == 0  # of several processes, the one that writes
        with stop_signals(), full_disk(folder), _owned(folder) if first else contextlib.nullcontext():
            if first:
                self.write(program)
            meet("the program is written")
            try:
                state, _ = fit(program.config, str(folder / "run"))
                if int(np.ravel(on_host(state.step))[0]) < program.config.train.steps:
                    raise Stopped
                meet("the run is written")
                record = _finished(program, state, folder / "run")
            except Diverged as error:
                record = self._diverged(program, str(error))
            record = dataclasses.replace(record, seconds=time.perf_counter() - began)
            if first:
                write(folder / "record.json", dataclasses.asdict(record))
        return record

    def _diverged(self, program: Program, sentence: str) -> Record:
        """A single seed has failed; the seeds of a population count by themselves."""
        if len(program.seeds) == 1:
            failed = {str(program.seeds[0]): sentence}
            return Record(program.key, program.seeds, {}, {}, failed, "", (), program.made, where(), 0.0)
        alone = [Program(_alone(program.config, seed), program.made) for seed in program.seeds]
        records = [self.run(one) for one in alone]
        metrics = sorted({metric for record in records for metric in record.values})
        curves = sorted({metric for record in records for metric in record.curves})
        steps = {metric: {step for record in records for step in record.curves.get(metric, {})} for metric in curves}
        return Record(
            key=program.key,
            seeds=program.seeds,
            values={metric: [record.values.get(metric, [None])[0] for record in records] for metric in metrics},
            curves={
                metric: {
                    step: [record.curves.get(metric, {}).get(step, [None])[0] for record in records]
                    for step in sorted(steps[metric], key=int)
                }
                for metric in curves
            },
            failed={seed: text for record in records for seed, text in record.failed.items()},
            bits=digest([record.bits for record in records]),
            alone=tuple(one.key for one in alone),
            made=program.made,
            where=where(),
            seconds=0.0,
        )


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Inside, no other process runs the program of this folder, and what this one tells goes to its log.

    Raises:
        UserError: another process runs it.
    """
    lock = FolderLock(folder)
    try:
        with (folder / "log.txt").open("a") as log, contextlib.redirect_stderr(log):
            yield
    finally:
        lock.release(undo=False)


def _check_program(values: Any) -> None:
    """Raises KeyError or TypeError for what is no program."""
    dict(**values["config"], **values["made"])


def _check_record(values: Any) -> None:
    """Raises KeyError or TypeError for what is no record."""
    _record(values)


def _record(values: Any) -> Record:
    return Record(**values | {"seeds": tuple(values["seeds"]), "alone": tuple(values["alone"])})


def _alone(config: ConfigDict, seed: int) -> ConfigDict:
    """The config of one seed of a population."""
    order = config.data.seed + (seed - config.train.seed) * (config.data.order == "own")
    return load("base", **flatten(config) | {"train.seed": seed, "train.seeds": 1, "data.seed": order})


def _finished(program: Program, state: State, run: Path) -> Record:
    """What a run's folder holds of its last step, and the bits of its parameters.

    Raises:
        UserError: it learned from other text than the program's.
    """
    lines, _ = read_lines(run / "metrics.jsonl")
    count, last = len(program.seeds), program.config.train.steps
    values: dict[str, list[float | None]] = {}
    curves: dict[str, dict[str, list[float | None]]] = {}
    for line in lines:
        for name, value in line.items():
            own = value if isinstance(value, list) else [value]
            if name in ("step", "val/windows", *_NO_RESULTS) or len(own) != count:
                continue
            if name.startswith("val/") or name == "train/loss":
                curves.setdefault(name, {})[str(line["step"])] = own
            if line["step"] == last:
                values[name] = own
    passport = loads((run / "passport.json").read_bytes())
    measured = passport["evaluation"]
    if passport["data"]["fingerprint"] != program.made["data"]:
        raise UserError(
            f"program {program.key}: its text was changed after it was asked for: start its plan again, which asks for"
            " programs of the text as it is now."
        )
    return Record(
        key=program.key,
        seeds=program.seeds,
        values=values,
        curves=curves,
        failed={},
        bits=_bits(state),
        alone=(),
        made=program.made,
        where=where() | {"windows": f"{measured['windows']} of {measured['of']}"},
        seconds=0.0,
    )


def _bits(state: State) -> str:
    """Of every parameter, by name."""
    known = hashlib.sha256()
    for name, leaf in sorted(plain(state.params).items()):
        known.update(name.encode())
        known.update(np.ascontiguousarray(on_host(leaf)).tobytes())
    return known.hexdigest()[:16]
