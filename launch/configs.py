"""Configs, from a file or from the command line, checked and locked in the same way."""

import dataclasses
import difflib
import functools
import inspect
import numbers
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, get_args

import numpy as np
from ml_collections import ConfigDict

import configs
from configs import base
from model.cycles import read_cycle
from model.errors import UserError
from model.families.table import FAMILIES
from model.layers import choose
from train.run.files.learned import flatten
from train.run.files.naming import check_length
from train.tasks.table import TASKS

Value = int | float | str | bool
# What is chosen by a key of all runs, and has keys of its own in a section.
CHOSEN: dict[str, tuple[str, dict[str, Any]]] = {"family": ("model", FAMILIES), "task": ("objective", TASKS)}
_KEYS = {"family": "keys of its model", "task": "keys of what it learns"}
_WHERE = {"family": "model/families/table.py", "task": "train/tasks/table.py"}
_SHARED_LINE = re.compile(r"^ {4}(\w+\.\w+) = .+?  # (.+)$", re.MULTILINE)
_FIELD_LINE = re.compile(r"^ {4}(\w+): .+? = .+?  # (.+)$", re.MULTILINE)
_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_INT64 = 2**63 - 1
_SHOWN = 60  # letters of a value that a sentence repeats
_BOOLS = {"true": True, "false": False, "1": True, "0": False}


def load(name: str, **overrides: Value) -> ConfigDict:
    """Returns the locked config of a file and variant, such as 'gpt:quickstart', with some keys changed.

    `name` is a file of `configs/` ('gpt', 'gpt:cpu') or a path ('configs/gpt.py:cpu', 'mine.py'). `overrides` are
    written `**{'train.steps': 9}`; strings are read as on the command line ('9').

    Raises:
      UserError: there is no such file, variant or key, the name is too long, or a value is not of its key's type.
    """
    check_length("--config", name)
    file, _, variant = name.partition(":")
    module = _module(_find(file))
    variants = vars(module).get("VARIANTS", {})
    if variant and variant not in variants:
        raise UserError(f"--config={name}: {file} has no variant {variant!r}{_nearest(variant, variants)}.")
    config = module.get_config(variant) if variant else module.get_config()
    written = flatten(config)
    for key, chosen in overrides.items():
        _check_chosen(name, written, key, chosen)
    return _resolve(written | overrides)


def _check_chosen(name: str, written: Mapping[str, Value], chooser: str, chosen: Value) -> None:
    """Refuses another family or task than that of a config whose keys it has not.

    Raises:
      UserError: names the key, and what to take.
    """
    _, table = CHOSEN.get(chooser, ("", {}))
    if chosen not in table:
        return
    known = own_defaults(chooser, str(chosen))
    of_others = {key for one in table for key in own_defaults(chooser, one)}
    if lost := [key for key in written if key in of_others - known.keys()]:
        raise UserError(
            f"--config.{chooser}={chosen}: --config={name} sets {', '.join(lost)}, which this {chooser} has not; "
            f"take a config of that {chooser} (configs/ has some), or configs/base.py."
        )


def own_defaults(chooser: str, name: str) -> dict[str, Value]:
    """Returns {'section.key': default} of what `family` or `task` chooses: the fields of its dataclass that have one;
    data give the others.

    Raises:
      UserError: there is no such family or task.
    """
    section, table = CHOSEN[chooser]
    fields = dataclasses.fields(choose(table, name, chooser))
    return {f"{section}.{one.name}": one.default for one in fields if one.default is not dataclasses.MISSING}


def _also_texts(family: str) -> set[str]:
    """Returns the keys of a family that take a text besides the type of their default: `bool | str`."""
    fields = dataclasses.fields(FAMILIES[family])
    return {f"model.{one.name}" for one in fields if str in get_args(one.type)}


def shared_comments() -> dict[str, str]:
    """Returns {'section.key': its comment in configs/base.py} of the keys that all runs share."""
    return {key.removeprefix("config."): text for key, text in _SHARED_LINE.findall(inspect.getsource(base))}


def own_comments(chooser: str, name: str) -> dict[str, str]:
    """Returns {'section.key': its comment} of what `family` or `task` chooses, from the classes of its dataclass; one
    that only changes a default leaves the comment of that from which it inherits.
    """
    section, table = CHOSEN[chooser]
    kinds: list[Any] = [kind for kind in reversed(table[name].__mro__) if dataclasses.is_dataclass(kind)]
    lines = [line for kind in kinds for line in _FIELD_LINE.findall(inspect.getsource(kind))]
    return {f"{section}.{key}": text for key, text in lines}


def comments() -> dict[str, str]:
    """Returns {'section.key': its comment} of every key, of whatever family and task."""
    own = [own_comments(chooser, name) for chooser, (_, table) in CHOSEN.items() for name in table]
    return shared_comments() | dict(line for lines in own for line in lines.items())


def help_text(config: ConfigDict | None = None) -> str:
    """Returns one line per key, with flag, default and comment: those of all runs, of each family, and of each task;
    of one config, its own keys alone, with its values.
    """
    values = {} if config is None else flatten(config)

    def lines(defaults: Mapping[str, Value], texts: Mapping[str, str]) -> list[str]:
        return [f"  {f'--config.{key}={values.get(key, defaults[key])}':<44} {text}" for key, text in texts.items()]

    found = [f"keys of a config, and their {'defaults' if config is None else 'values in this one'} (configs/base.py):"]
    found += lines(flatten(base.get_config()), shared_comments())
    for chooser, (_, table) in CHOSEN.items():
        for name in table if config is None else [config[chooser]]:
            own = lines(own_defaults(chooser, name), own_comments(chooser, name))
            found += (
                ["", f"{_KEYS[chooser]}, where --config.{chooser}={name} ({_WHERE[chooser]}):", *own] if own else []
            )
    return "\n".join(found)


def _find(file: str) -> Path:
    """Returns the file that a config's name stands for, from any working directory."""
    package = Path(inspect.getfile(configs)).parent
    places = [Path(file), package.parent / file, package / f"{file}.py"]
    for place in places:
        if place.suffix == ".py" and place.is_file():
            return place
    known = [path.stem for path in package.glob("*.py") if path.stem not in ("__init__", "base", "published")]
    raise UserError(f"--config={file}: there is no such config file{_nearest(file, known)}.")


def run_file(path: Path) -> ModuleType:
    """Runs a Python file, which need not be in a package.

    By its text alone: Python's own copy, `__pycache__`, may be of one that was edited within the same second.

    Raises:
      UserError: it is no Python.
    """
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        code = _compiled(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: this is no Python: {error.msg}.") from error
    exec(code, vars(module))
    return module


@functools.cache
def _compiled(text: bytes, path: str) -> CodeType:
    return compile(text, path, "exec")


def _module(path: Path) -> ModuleType:
    """Runs a config file."""
    module = run_file(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={path}: a config file defines get_config(), and this one does not.")
    return module


def _resolve(values: Mapping[str, Any]) -> ConfigDict:
    """Returns the locked config of the base's keys and of those of family and task, each checked against its type."""
    shared = flatten(base.get_config())
    chosen = {name: str(_convert(name, values.get(name, shared[name]), shared[name])) for name in CHOSEN}
    defaults = {**own_defaults("family", chosen["family"]), **own_defaults("task", chosen["task"]), **shared}
    family, texts = FAMILIES[chosen["family"]], _also_texts(chosen["family"])
    for key in values:
        if key not in defaults:
            raise UserError(f"--config.{key}: there is no such key{_nearest(key, defaults)}.")
    tree: dict[str, Any] = {section: {} for section, _ in CHOSEN.values()}
    for key, default in defaults.items():
        section, _, name = key.rpartition(".")
        kind = family.LAYERED.get(name, str) if section == "model" else str
        value = values.get(key, default)
        if not (key in texts and isinstance(value, str) and value.lower() not in _BOOLS):
            value = _convert_layers(key, value, kind, default)
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return ConfigDict(tree).lock()


def _convert_layers(key: str, value: Any, kind: type, default: Value) -> Value:
    """Returns a value as `_convert` does; the text of a cycle of numbers stays one, when each of them is converted."""
    if kind is str or not isinstance(value, str) or not {"+", "*"} & {*value}:
        return _convert(key, value, default)
    found = [_convert(key, one, default) for one in read_cycle(value, key, kind).values]
    return value if len(found) > 1 else found[0]


def _convert(key: str, value: Any, default: Value) -> Value:
    """Returns a value as the type of its key's default; only int to float, and text to each type, is a conversion."""
    kind, text = type(default), isinstance(value, str)
    if kind is str and text:
        return value
    if kind is bool and (isinstance(value, bool) or (text and value.lower() in _BOOLS)):
        return _BOOLS[str(value).lower()]
    numeric = numbers.Integral if kind is int else numbers.Real
    if kind in (int, float) and (text or (isinstance(value, numeric) and not isinstance(value, bool))):
        try:
            number = kind(value)
            # A device computes in float32, which would make another number of what is too large or too small for it.
            if abs(number) <= _INT64 if kind is int else number == 0 or _TINY <= abs(number) <= _HUGE:
                return number
        except (ValueError, OverflowError):
            pass
    limits = f"a number within float32 (0, or {_TINY:.1e} to {_HUGE:.1e})"
    rule = {int: "a whole number", float: limits, bool: "true or false", str: "text"}[kind]
    value = value if len(str(value)) <= _SHOWN else f"{str(value)[:_SHOWN]}..."
    raise UserError(f"--config.{key}={value!r}: {rule} is needed, such as {default!r}.")


def _nearest(word: str, known: Collection[str]) -> str:
    """Returns '; the nearest is ...', or what there is when nothing is near, or '' when that would be long."""
    inside = [name for name in known if name.startswith(f"{word}.")]
    by_end = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(word, known, n=1)
    near = near or [by_end[end] for end in difflib.get_close_matches(word.rpartition(".")[2], by_end, n=1)]
    if near and not inside:
        return f"; the nearest is {near[0]}"
    names = inside or known
    return f"; there are: {', '.join(names)}" if inside or len(names) < 25 else "; --help lists them all"
