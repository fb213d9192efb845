"""A run of another format is refused by its number, and whoever changes a meaning is told to raise the number."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from launch import evaluate, generate, train
from launch.configs import load
from model import GPT, GPTConfig
from model.attention import parse_bias
from model.positions import parse_position
from tests.tiny import call, words
from train.data.order import ORDERS, shuffled
from train.run.files.format import FORMAT
from train.run.files.learned import ADDED, flatten

# What format `FORMAT` means.
MEANING = {
    "first values": "2cc279c8bad78e84",
    "order of the data": "4ab14428cc8213b5",
    "places of masks": "036bf54601347077",
    "turns of positions": "4f60a6ba8a7c739f",
    "names of keys": "57902fc8ff438679",
}
MASKS = "full causal window(3) window(2,1) chunked(4) prefix(3) sink_columns(2) global_tokens(2) dilated(3)"
MASKS += " strided(4) fixed(4,1) random_blocks(3,1,11)"
POSITIONS = "rope(0.5) rope_linear(4) rope_ntk(4) rope_yarn(4,32) rope_llama3(8)"


def test_the_format_means_what_it_did() -> None:
    found = {
        name: hashlib.sha256(json.dumps(meaning()).encode()).hexdigest()[:16] for name, meaning in MEANINGS.items()
    }
    assert (FORMAT, found) == (7, MEANING), (
        "What differs here means something else than in runs that exist: raise FORMAT in train/run/files/format.py, "
        f"say there what raised it, and write its number and these digests here: {found}. Only what is rounded "
        "otherwise by another version of a library is renewed without raising it."
    )


def first_values() -> Any:
    """Of every kind of parameter, by its path."""
    sizes = {"num_layers": 2, "width": 26, "num_heads": 13, "mlp_width": 17, "vocab_size": 29, "max_length": 11}
    choices = {"use_bias": True, "norm": "layer", "sinks": True, "edits": "qk_norm", "tied": False, "mlp": "swiglu"}
    parts = {"gpt": GPT(GPTConfig(**sizes, **choices, position="learned"), rngs=nnx.Rngs(0))}
    parts |= {name: parse_bias(name)(13, nnx.Rngs(0)) for name in ("t5", "kerple", "kerple_power", "fire")}
    return [
        (name, *path, param.shape, [f"{value:.3f}" for value in np.ravel(param[...])[:3]])
        for name, part in parts.items()
        for path, param in nnx.to_flat_state(nnx.state(part, nnx.Param))
    ]


def order_of_the_data() -> Any:
    """Windows by place and seed, and the axis of a batch along which each seed has its own."""
    return [shuffled(np.arange(40), 13, seed).tolist() for seed in (0, 1, 2**63 - 1)], ORDERS


def places_of_masks() -> Any:
    """Who sees whom, in a row of two packed documents."""
    ids_BT = (np.arange(11)[None] >= 4).astype(np.int32)
    positions_BT = np.arange(11)[None] - 4 * ids_BT
    config = GPTConfig(num_layers=1, width=4, num_heads=2, vocab_size=5, max_length=11)
    model, seen = GPT(config, rngs=nnx.Rngs(0)), []
    for text in MASKS.split():
        model.config = dataclasses.replace(config, mask=text)
        mask = model.attention_scores((ids_BT, ids_BT, positions_BT), None)["self"][0].mask
        seen.append(np.asarray(mask.block(0, 0, 11, 11)).tolist())
    return seen


def turns_of_positions() -> Any:
    """Radians per place of each pair, and what turned columns are multiplied by."""
    made: list[Any] = [parse_position(text)(26, 12, 11, nnx.Rngs(0)) for text in POSITIONS.split()]
    return [[f"{number:.4g}" for number in (*one.frequencies, one.gain)] for one in made]


def names_of_keys() -> Any:
    """Keys and their types; a run that lacks one, or has one more, cannot be read, but for those of `ADDED`."""
    younger, known = flatten(ADDED), flatten(load("base"))
    assert {key: known[key] for key in younger} == younger, "a run without the key did what the default says"
    return sorted((key, type(value).__name__) for key, value in known.items() if key not in younger)


MEANINGS: dict[str, Callable[[], Any]] = {
    "first values": first_values,
    "order of the data": order_of_the_data,
    "places of masks": places_of_masks,
    "turns of positions": turns_of_positions,
    "names of keys": names_of_keys,
}


Command = tuple[Callable[[Sequence[str]], None], list[str]]


@pytest.mark.parametrize(
    ("passport", "told"),
    [
        ('{"git": {"commit": "c0ffee"}}', "a run of format 1, made by commit c0ffee, "),
        (
            '{"format": 1, "git": null, "data": {"fingerprint": "f1n6er"}}',
            "a run of format 1, made by an unknown commit, ",
        ),
        ('{"format": 99, "git": {"commit": "c0ffee"}}', "a run of format 99, made by commit c0ffee, "),
        ("[]", "a run whose passport.json is lost, and no checkpoint keeps a copy of it, so its format is unknown, "),
        (None, "a run whose passport.json is lost, and no checkpoint keeps a copy of it, so its format is unknown, "),
    ],
)
def test_a_run_of_another_format_is_refused_whatever_is_in_it(passport: str | None, told: str, tmp_path: Path) -> None:
    """Its config has keys and sections of another time; nothing of it is touched."""
    run = tmp_path / "run"
    (run / "checkpoints/4/params").mkdir(parents=True)
    (run / "config.json").write_text('{"model": {"warp": 9}, "future": {}}')
    (run / "tokenizer.json").write_text('{"kind": "bytes"}')
    if passport is not None:
        (run / "passport.json").write_text(passport)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    here = f"--workdir={run}"
    commands: list[Command] = [
        (evaluate.main, [here]),
        (generate.main, [here, "--prompt=de"]),
        (train.main, words(run, {})),
    ]
    for main, argv in commands:
        outcome = call(main, argv)
        assert outcome.status == 2
        (sentence,) = [line for line in outcome.err.splitlines() if "--workdir" in line]
        assert f"{here} holds {told}and this code is of format {FORMAT}, " in sentence
        (run / ".lock").unlink(missing_ok=True)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
