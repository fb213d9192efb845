"""Which keys of a config decide what a run learns; every other key may change between two starts of it."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

_LEARNED = (
    "family",
    "task",
    "objective",
    "model",
    "data",
    "optimizer",
    "train.steps",
    "train.accumulate",
    "train.seed",
    "train.seeds",
    "train.dropout_seed",
    "train.label_smoothing",
    "train.z_loss",
)
# Keys that came without a new format, and what says of runs that have them not what these did.
ADDED: dict[str, dict[str, Any]] = {"train": {"step": "partitioned"}, "mesh": {"rules": "fsdp", "place": ""}}
PLACES = ("data.path", "data.name", "data.dir")  # where the text lies; its fingerprint says whether it is the same
FREE = ("data.prefetch", *PLACES)


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns {'section.key': value} of a config, or of the dict it was saved as; 'key' of what is in no section."""
    found: dict[str, Any] = {}
    for name, content in config.items():
        section = isinstance(content, ConfigDict | Mapping)
        found |= {f"{name}.{key}": value for key, value in content.items()} if section else {name: content}
    return found


def with_added(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config with the keys that are younger than it, as `ADDED` has them."""
    return {name: ADDED.get(name, {}) | dict(part) if name in ADDED else part for name, part in config.items()}


def learned_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {'section.key': (old, new)} of the keys that change what is learned, of two configs as nested dicts."""

    def learned(config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: value
            for key, value in flatten(config).items()
            if {key, key.partition(".")[0]} & {*_LEARNED} and key not in FREE
        }

    before, after = learned(old), learned(new)
    keys = [*before, *(key for key in after if key not in before)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def altered(kept: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {'section.key': (kept, found)} of what no start of a run writes into its config.

    That is a key that is missing or new, a value of another type, or one that changes what is learned; but for more
    steps, which `--extend` gives.
    """
    before, after, missing = flatten(with_added(kept)), flatten(with_added(found)), object()
    keys = [*before, *(key for key in after if key not in before)]
    other = {key for key in keys if type(before.get(key, missing)) is not type(after.get(key, missing))}
    changes = learned_changes(kept, found)
    if "train.steps" not in other and changes.get("train.steps", (0, 0))[0] <= changes.get("train.steps", (0, 0))[1]:
        changes.pop("train.steps", None)
    return {key: (before.get(key), after.get(key)) for key in keys if key in other | changes.keys()}
