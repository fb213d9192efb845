"""What a person may write for each key of a config, right and wrong; keys and entries of tables are found by
themselves."""

import inspect
import re
import time
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from launch.configs import load
from launch.train import check
from model.attention.biases.table import BIASES
from model.attention.edits.table import EDITS
from model.attention.masks.table import MASKS
from model.errors import UserError
from model.norms import NORMS
from model.positions import POSITIONS
from model.use_bias import BIASED
from train.data import open_data
from train.decay import LEAVES
from train.devices.memory import check_memory
from train.experiment import Experiment
from train.run.files.learned import flatten

DEFAULTS = flatten(load("base"))
# What no key of a type takes, and what some do.
NEVER = {
    int: ("", "two", "1.5", "nan", "inf", "9" * 5000, f"-{2**63}", "1" + "0" * 30),
    float: ("", "two", "nan", "-inf", "1e39", "1e-300", "1e300", "1" + "0" * 5000, "-1", "-1e38"),
    bool: ("", "maybe", "-1", "2", "nan"),
    str: (),
}
PERHAPS = {
    int: ("-1", "0", "1", "2", "3", "4", "7", "8", "16", "512", "2147483647", "2147483648", "9223372036854775807"),
    float: ("0", "0.1", "0.5", "0.9", "0.99999999", "1", "2", "1e-30", "1e9", "1e30", "1e38"),
    bool: ("true", "false", "0", "1"),
    str: ("", "0", "-1", "nan", "two words", "a\0b", "\udcff", "~" * 3000, "(" * 300),
}
NUMBERS = (
    "0",
    "-1",
    "0.5",
    "7",
    "1e-30",
    "1e38",
    "1e400",
    "2147483647",
    "1000000000",
    "1" + "0" * 30,
    "True",
    "'a'",
    "2j",
)
REQUIRED = {"factor": 4, "length": 64, "count": 1, "size": 8}  # what is written for arguments without a default
EXPRESSIONS = {
    "model.position": POSITIONS,
    "model.bias": BIASES,
    "model.mask": MASKS,
    "model.edits": EDITS,
    "model.norm": NORMS,
    "model.use_bias": BIASED,
    "optimizer.decayed": LEAVES,
}
# A key that is only read beside another.
BESIDE = {"data.vocab_size": {"data.tokenizer": "bpe"}, "data.name": {"data.path": ""}}


def named(key: str) -> list[str]:
    """The entries of the table that a key chooses from, read from the sentence that refuses another, or all of its
    expressions: each function, and each of its arguments with each number and each of its words."""
    if key in EXPRESSIONS:
        return [text for name, function in EXPRESSIONS[key].items() for text in _calls(key, name, function)]
    try:
        check(load("base", **{key: "no such name"}))
    except UserError as error:
        listed = re.search(r"is not one of: (.*)\.$", str(error))
        return listed[1].split(", ") if listed else []
    return []


def _calls(key: str, name: str, function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    needed = {one.name: REQUIRED.get(one.name, 8) for one in parameters if one.default is one.empty}
    changed = [needed | {one.name: value} for one in parameters for value in (*NUMBERS, *_words(one))]
    arguments = [", ".join(f"{name}={number}" for name, number in one.items()) for one in [needed, *changed]]
    before = "causal & " if key == "model.mask" else ""
    return [f"{before}{name}({one})" if one else f"{before}{name}" for one in arguments]


def _words(parameter: inspect.Parameter) -> tuple[str, ...]:
    return get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else ()


def answer(changes: dict[str, Any]) -> tuple[str | Experiment, float]:
    """The sentence that refuses a run, or its experiment, and the seconds until then."""
    began, found = time.perf_counter(), None
    try:
        config = load("base", **changes)
        experiment = check(config)
        check_memory(experiment)
        data = open_data(config.data)
        data.windows("train")
        data.windows("validation")
        found = experiment
    except UserError as error:
        found = str(error)
    return found, time.perf_counter() - began


def names(sentence: str, key: str) -> bool:
    """Whether a sentence says which flag to change."""
    section, _, name = key.partition(".")
    of_mesh = section == "mesh" and f"{name}=" in sentence and "--config.mesh" in sentence
    return f"--config.{key}" in sentence or of_mesh or f", {key}" in sentence


def refused(changes: dict[str, Any]) -> str | None:
    """The sentence that refuses a run, which is one line, comes within a second and names a flag; None: it is built."""
    found, seconds = answer(changes)
    if not isinstance(found, str):
        return None
    if seconds > 1:  # another process may have taken the core
        seconds = answer(changes)[1]
    assert seconds <= 1, (changes, seconds)
    assert "\n" not in found, changes
    assert any(names(found, key) for key in changes) or len(changes) > 1, (changes, found)
    assert "--config." in found or "--workdir" in found, (changes, found)
    return found
