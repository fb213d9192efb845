"""A family is a dataclass, its module and one line of the table: keys, help, errors and commands find it there."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from flax import nnx

from launch import evaluate, generate, train
from launch.configs import help_text, load
from launch.train import check
from model import GPT, GPTConfig, UserError
from model.errors import Range, check_range
from model.families.table import FAMILIES
from tests.tiny import call, words, write_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class EchoConfig(GPTConfig):
    """A GPT with a key of its own, and another default of one of GPT's."""

    width: int = 24  # D, of echoes
    loudness: float = 2.0  # factor on the logits

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("config.model.loudness", self.loudness, Range(0, 10))

    def build(self, rngs: nnx.Rngs) -> "Echo":
        return Echo(self, rngs=rngs)


class Echo(GPT):
    config: EchoConfig
    built = 0

    def __init__(self, config: EchoConfig, *, rngs: nnx.Rngs):
        Echo.built += 1
        super().__init__(config, rngs=rngs)

    def _logits(self, x_BTD: Any) -> Any:
        return self.config.loudness * super()._logits(x_BTD)


Command = Callable[[Sequence[str]], None]


@pytest.fixture(autouse=True)
def _with_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "echo", EchoConfig)


def test_its_keys_are_found() -> None:
    config = load("base", family="echo", **{"model.loudness": "3"})
    assert (config.model.loudness, config.model.width, config.model.num_layers) == (3.0, 24, 4)
    own = help_text().split("--config.family=echo (")[1]
    for line in ("loudness=2.0 factor on the logits", "width=24 D, of echoes", "mask=causal which keys a query sees"):
        assert f"--config.model.{line}" in " ".join(own.split())
    assert "loudness" not in help_text().split("--config.family=echo (")[0]
    for wrong, sentence in (
        (
            {"family": "echo", "model.loudnes": 3},
            "--config.model.loudnes: there is no such key; the nearest is model.lou",
        ),
        ({"family": "echo", "model.loudness": "x"}, "--config.model.loudness='x': a number within float32"),
        ({"model.loudness": 3}, "--config.model.loudness: there is no such key"),
        ({"family": "ecco"}, f"--config.family='ecco' is not one of: {', '.join(FAMILIES)}."),
    ):
        with pytest.raises(UserError) as error:
            load("base", **wrong)
        assert str(error.value).startswith(sentence)
    with pytest.raises(UserError, match=r"--config.model.loudness=11.0 must be at least 0 and at most 10\."):
        check(load("base", family="echo", **{"model.loudness": 11}))


@pytest.mark.rest
def test_a_run_of_it_is_trained_evaluated_and_sampled(tmp_path: Path) -> None:
    keys = write_text(tmp_path) | {"family": "echo", "train.steps": 2, "train.evaluate_every": 2}
    run = tmp_path / "run"
    commands: list[tuple[Command, list[str]]] = [
        (train.main, words(run, keys)),
        (evaluate.main, [f"--workdir={run}"]),
        (generate.main, [f"--workdir={run}", "--prompt=de", "--max_new_tokens=3"]),
    ]
    for main, argv in commands:
        before, outcome = Echo.built, call(main, argv)
        assert (outcome.status, Echo.built > before) == (0, True), outcome.err
    config = json.loads((run / "config.json").read_text())
    assert (config["family"], config["model"]["loudness"], config["model"]["width"]) == ("echo", 2.0, 16)
    other = call(train.main, words(run, keys | {"family": "gpt"}))
    assert other.status == 2
    assert "family: 'echo' -> 'gpt', model.loudness: 2.0 -> None" in other.err
