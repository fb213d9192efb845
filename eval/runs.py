"""A trained run, read back from its folder."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from ml_collections import ConfigDict

from model import UserError
from model.attention.cores.table import anywhere
from model.families.family import Model
from train.data import Data, Tokenizer, tokenizer_of
from train.experiment import Experiment, bind, make_experiment
from train.run.bucket.address import checkpoints_of
from train.run.bucket.run import folder_of
from train.run.checkpoints import Checkpoints
from train.run.files.format import check_format
from train.run.files.learned import with_added
from train.run.files.mending import read_kept
from train.run.files.naming import check_length
from train.run.folder import check_text
from train.sharding import placed


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run has learned: the model (of the first seed, where there are several) after `step` updates.

    `experiment` says where it lies here; several processes call the model inside of `placed()`.
    """

    folder: Path
    config: ConfigDict
    experiment: Experiment
    model: Model
    tokenizer: Tokenizer
    step: int

    def placed(self) -> contextlib.AbstractContextManager[None]:
        """Inside, what is computed lies on the devices of the model."""
        return placed(self.experiment.mesh, self.experiment.rules)

    @functools.cached_property
    def data(self) -> Data:
        """The run's data set, opened when it is first asked for; a prompt needs none.

        Raises:
            UserError: the data set cannot be had, or its text or tokens are not those that the run has learned.
        """
        data = self.experiment.task.open(self.config, self.tokenizer, allow_overlap=True)
        passport = read_kept(self.folder, "passport.json")
        check_text(self.folder, passport["data"]["fingerprint"], data.fingerprint)
        return data


def open_run(workdir: str | Path, places: Mapping[str, str] = MappingProxyType({})) -> Run:
    """The newest good checkpoint of a run, whatever mesh and core it was trained with.

    On all devices; of several processes all must call this.

    `places`, such as {'data.path': 'elsewhere/*.txt'}, say where its text lies now.

    Raises:
        UserError: the folder is no run's, or one of another format, or holds no checkpoint that can be read.
    """
    check_length("--workdir", workdir)
    folder = folder_of(workdir)
    check_format(folder)
    passport, config, state = (read_kept(folder, name) for name in ("passport.json", "config.json", "tokenizer.json"))
    config = ConfigDict(with_added(config))
    config.update_from_flattened_dict(places)
    for key in config.model:
        if key.rpartition("_")[2] == "core":  # the machine that trained may have had another that is fastest
            config.model[key] = anywhere(config.model[key])
    tokenizer = tokenizer_of(state)
    experiment = _experiment(config, tokenizer.vocab_size, len(passport["data"].get("names", ())))
    found = None
    if (folder / "checkpoints").is_dir():
        with Checkpoints(checkpoints_of(folder)) as checkpoints:
            found = checkpoints.restore({"params": experiment.abstract.params})
    if found is None:
        raise UserError(f"--workdir={workdir} holds no checkpoint yet: give the folder of a run that has saved one.")
    params, _, step = found
    return Run(folder, config, experiment, bind(config, params["params"]), tokenizer, step)


def bound(config: ConfigDict) -> Callable[[Any], dict[int, Model]]:
    """What makes of the parameters of a run a model of each seed, by its number, while it learns."""
    first, count = config.train.seed, config.train.seeds
    return lambda params: {first + number: bind(config, params, number) for number in range(count)}


def _experiment(config: ConfigDict, vocab_size: int, labels: int) -> Experiment:
    """The run as it lies on the devices that read it, with batches that divide over them.

    As many devices as divide its width share the parameters, the others hold copies; all do, where seeds do not divide
    over the copies.
    """
    devices, seeds = jax.devices(), config.train.seeds
    fsdp, rules = math.gcd(len(devices), config.model.width), "fsdp"
    if seeds > 1 and seeds % (len(devices) // fsdp):
        fsdp, rules = len(devices), "replicated"
    here = ConfigDict(config.to_dict())
    mesh = {"replica": len(devices) // fsdp, "fsdp": fsdp, "tensor": 1, "context": 1, "rules": rules, "place": ""}
    here.mesh, here.train.step = ConfigDict(mesh), "partitioned"
    here.train.accumulate = 1
    here.data.batch_size = -(-config.data.batch_size // len(devices)) * len(devices)
    return make_experiment(here, vocab_size, devices, labels)
