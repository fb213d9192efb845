"""A trained run, read back from its folder."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
from ml_collections import ConfigDict

from model import GPT, UserError
from train.data import Data, Tokenizer, open_data, tokenizer_of
from train.experiment import bind, make_experiment
from train.run.checkpoints import Checkpoints
from train.run.folder import check_text
from train.run.format import check_format
from train.run.mending import read_kept


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run has learned: the model (of the first seed, where there are several) after `step` updates."""

    folder: Path
    config: ConfigDict
    model: GPT
    tokenizer: Tokenizer
    step: int

    @functools.cached_property
    def data(self) -> Data:
        """The run's data set, opened when it is first asked for; a prompt needs none.

        Raises:
            UserError: the data set cannot be had, or its text or tokens are not those that the run has learned.
        """
        data = open_data(self.config.data, self.tokenizer, allow_overlap=True)
        passport = read_kept(self.folder, "passport.json")
        check_text(self.folder, passport["data"]["fingerprint"], data.fingerprint)
        return data


def open_run(workdir: str | Path, places: Mapping[str, str] = MappingProxyType({})) -> Run:
    """The newest good checkpoint of a run, on one device, whatever mesh and core it was trained with.

    `places`, such as {'data.path': 'elsewhere/*.txt'}, say where its text lies now.

    Raises:
        UserError: the folder is no run's, or one of another format, or holds no checkpoint that can be read.
    """
    folder = Path(workdir)
    check_format(folder)
    _, config, state = (read_kept(folder, name) for name in ("passport.json", "config.json", "tokenizer.json"))
    config = ConfigDict(config)
    config.update_from_flattened_dict(places)
    config.mesh = ConfigDict({"replica": 1, "fsdp": 1, "tensor": 1, "context": 1})
    config.model.core = "auto"  # a core is a choice for the machine that trained; here the fastest that is exact
    tokenizer = tokenizer_of(state)
    experiment = make_experiment(config, tokenizer.vocab_size, jax.local_devices()[:1])
    found = None
    if (folder / "checkpoints").is_dir():
        with Checkpoints(folder / "checkpoints") as checkpoints:
            found = checkpoints.restore({"params": experiment.abstract.params})
    if found is None:
        raise UserError(f"--workdir={workdir} holds no checkpoint yet: give the folder of a run that has saved one.")
    params, _, step = found
    return Run(folder, config, bind(config, params["params"]), tokenizer, step)
