"""Each key of a config with each bad value: one sentence with the rule, within a second, or a sound experiment."""

from pathlib import Path
from typing import Any

import pytest

from tests.launch.overrides import BESIDE, DEFAULTS, NEVER, PERHAPS, named, refused
from tests.tiny import write_text


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_text(tmp_path_factory.mktemp("ranges"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a data.dir may be any word


@pytest.mark.parametrize("key", [key for key, default in DEFAULTS.items() if NEVER[type(default)]])
def test_what_no_key_of_its_type_takes_is_refused(keys: dict[str, Any], key: str) -> None:
    for value in NEVER[type(DEFAULTS[key])]:
        assert refused(keys | BESIDE.get(key, {}) | {key: value}), f"{key}={value[:40]}"


@pytest.mark.rest
@pytest.mark.parametrize("key", DEFAULTS)
def test_every_other_value_is_refused_or_built(keys: dict[str, Any], key: str) -> None:
    sentences = {}
    for value in [*PERHAPS[type(DEFAULTS[key])], *named(key)]:
        sentences[value] = refused(keys | BESIDE.get(key, {}) | {key: value})
    if type(DEFAULTS[key]) in (int, float):
        # A rule that refuses all would pass for a good one; one that refuses nothing is none.
        assert None in sentences.values(), sentences
    if type(DEFAULTS[key]) is int and not key.startswith("mesh."):
        below = min(0, DEFAULTS[key]) - 1
        assert refused(keys | BESIDE.get(key, {}) | {key: f"{below}"}), "no number of things is negative"
