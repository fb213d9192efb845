"""Overrides at random, one or two at a time: each is answered by one sentence or built, and what is built ends."""

import contextlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
import pytest

from launch.configs import load
from launch.train import fit
from model.errors import UserError
from tests.launch.overrides import BESIDE, DEFAULTS, NEVER, PERHAPS, named, refused
from tests.tiny import write_text

SECONDS = 60  # in which two steps of a tiny model end


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    steps = {"train.steps": 2, "train.accumulate": 1, "data.batch_size": 16, "model.width": 32, "model.num_heads": 4}
    return write_text(tmp_path_factory.mktemp("fuzz")) | steps


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def drawn(number: int, seed: int) -> list[dict[str, Any]]:
    """Overrides: each entry of a table at its plainest, then random values of one key or of two."""
    rng = random.Random(seed)
    entries = {key: named(key) for key in DEFAULTS if isinstance(DEFAULTS[key], str)}
    found: list[dict[str, Any]] = [{key: text} for key, texts in entries.items() for text in texts if _plain(text)]
    rng.shuffle(found)
    found = found[: number // 4]

    def value(key: str) -> Any:
        kind = type(DEFAULTS[key])
        wrong = (*NEVER[kind], *PERHAPS[kind]) if rng.random() < 0.3 else PERHAPS[kind][:9]
        return rng.choice(entries[key] if entries.get(key) and rng.random() < 0.8 else wrong)

    while len(found) < number:
        chosen = rng.sample([*DEFAULTS], rng.choice((1, 2, 2)))
        found.append({key: value(key) for key in chosen})
    return found


def _plain(text: str) -> bool:
    return "=" not in text or text.endswith(("=4)", "=64)", "=8)"))


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Inside, what takes longer is interrupted by a TimeoutError."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def built(keys: dict[str, Any], number: int, seed: int) -> list[dict[str, Any]]:
    """Those of the overrides drawn that are not refused."""
    return [one for one in drawn(number, seed) if refused(_with(keys, one)) is None]


def _with(keys: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    beside = [extra for key in changes for extra in BESIDE.get(key, {}).items()]
    return keys | dict(beside) | changes


def test_some_overrides_are_answered_or_built(keys: dict[str, Any]) -> None:
    assert 10 < len(built(keys, 60, seed=1)) < 50


def trained(keys: dict[str, Any]) -> str:
    """How two steps of a run end: with a loss, or with the sentence that says what was not finite."""
    try:
        with deadline(SECONDS):
            state, history = fit(load("base", **keys | {"train.steps": 2}))
    except UserError as error:
        return str(error)
    assert int(np.max(jax.device_get(state.step))) == 2
    return "a loss" if any("train/loss" in values for values in history) else "no loss"


@pytest.mark.rest
def test_all_overrides_are_answered_and_what_is_built_ends(keys: dict[str, Any]) -> None:
    right = built(keys, 500, seed=0)
    assert 100 < len(right) < 400
    ends = {str(changes): trained(_with(keys, changes)) for changes in random.Random(0).sample(right, 20)}
    # Such as of a learning rate of 1e30.
    lost = {changes: end for changes, end in ends.items() if end != "a loss"}
    assert len(lost) <= 3, lost
    assert all("not finite" in end for end in lost.values()), lost
