"""From a config to examples: which source is taken, and that nothing is left behind by a refusal."""

import json
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from configs.base import get_config
from model.errors import UserError
from train.data import open_data
from train.data.examples import EMBEDDED, Labelled, Pair, Tagged, embedded, open_corpus, own_examples
from train.data.records import CORPORA
from train.tasks.table import TASKS


def config_of(folder: Path, **values: object) -> ConfigDict:
    config = get_config().data
    config.update({"dir": str(folder / "data"), **values})
    return config


def test_each_source_by_its_name(tmp_path) -> None:
    made = open_corpus(Pair, config_of(tmp_path, name="dates"), train=50)
    assert made.fingerprint == embedded("dates", tmp_path / "other", train=50).fingerprint
    assert made.described() == {
        "fingerprint": made.fingerprint,
        "overlap": {
            "documents": 0,
            "of": 1000,
            "characters": 0,
            "of_characters": sum(len(one.source) for one in made.splits["validation"]),
        },
        "repeated": 0,
        "left_out": {},
    }
    few = open_corpus(Labelled, config_of(tmp_path, name="packages"), among=("wsgiref", "urllib"))
    assert (few.names, {one.label for one in few.splits["train"]}) == (("wsgiref", "urllib"), {"wsgiref", "urllib"})
    rows = [json.dumps({"text": f"t{i}", "label": i % 3}) for i in range(20)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    own = open_corpus(Labelled, config_of(tmp_path, path=f"{tmp_path}/*.jsonl"))
    assert own.fingerprint == own_examples(Labelled, f"{tmp_path}/own.jsonl").fingerprint
    numbers = open_corpus(Labelled, config_of(tmp_path, path=f"{tmp_path}/*.jsonl"), form="number")
    assert numbers.splits["train"][0].label in (0.0, 1.0, 2.0)
    records = [{"de": b"eins", "en": b"one"}]
    with tfds.testing.mock_data(as_data_source_fn=lambda self, split, **_: records):
        config = config_of(tmp_path, name="wmt16_translate/de-en", feature="en, de")
        public = open_corpus(Pair, config)
        assert list(public.splits["validation"]) == [Pair("one", "eins")]


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (Tagged, {"name": "dates"}, "has no tagged words, which the task takes: give roles, "),
        (Pair, {"name": "packages"}, "has no pairs, which the task takes: give dates, numbers, parity, a TFDS set "),
        (Labelled, {"name": "packagess"}, "='packagess': the nearest corpus that is made here is 'packages'; as"),
        (Pair, {"name": "no_such"}, "--config.data.name='no_such' is not prepared in "),
        (Pair, {"path": "PLACE/own.jsonl"}, "1 of the 1 documents of the validation split are also in the train split"),
    ],
)  # fmt: skip
def test_a_refusal_leaves_nothing(kind, values, sentence, tmp_path) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"source": "a", "target": "b"}\n')
    values = {key: value.replace("PLACE/own", f"{tmp_path}/*") for key, value in values.items()}
    with pytest.raises(UserError) as caught:
        open_corpus(kind, config_of(tmp_path, **values))
    assert sentence in str(caught.value)
    assert not (tmp_path / "data").exists()
    if "path" in values:
        assert open_corpus(kind, config_of(tmp_path, **values), allow_overlap=True).overlap().share == 1.0


def test_a_corpus_of_examples_is_no_text(tmp_path) -> None:
    """And the table by which it is told names all that are made, each with a task that takes it."""
    with pytest.raises(UserError, match="='parity' holds examples for --config.task=translation, and no text: take"):
        open_data(config_of(tmp_path, name="parity"))
    assert CORPORA.keys() - {"python_stdlib"} == EMBEDDED.keys()
    kinds = {name: getattr(TASKS[task], "KIND", Pair) for name, task in CORPORA.items() if name in EMBEDDED}
    assert kinds == {name: one.kind for name, one in EMBEDDED.items()}


class Stopped(Exception):
    """What a user's Ctrl-C becomes."""


EVERY = [*((one.kind, name) for name, one in EMBEDDED.items()), (Pair, "wmt16_translate/de-en")]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_whoever_waits_can_stop_it(kind, name, tmp_path) -> None:
    calls = []

    def stop() -> None:
        calls.append(name)
        if len(calls) == 2:
            raise Stopped

    records = [{"de": b"eins", "en": b"one"}] * 3
    with tfds.testing.mock_data(as_data_source_fn=lambda self, split, **_: records), pytest.raises(Stopped):
        open_corpus(kind, config_of(tmp_path, name=name), while_waiting=stop)
    assert not list((tmp_path / "data" / "heed").glob("*-*[0-9a-f]"))  # nothing half made
