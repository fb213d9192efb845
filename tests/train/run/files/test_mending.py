"""Damaged files: JSON that is none, lines that are none, and what is made of them."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import UserError
from train.run.files.json_files import check_numbers, dumps, loads, read_cache, read_lines, set_aside
from train.run.files.mending import KEPT, mend, mend_lines, read_kept

VALUES: dict[str, Any] = {
    "config.json": {"family": "gpt"} | {section: {} for section in ("model", "data", "optimizer", "train", "mesh")},
    "passport.json": {"data": {"fingerprint": "f1n6er"}},
    "tokenizer.json": {"kind": "bytes"},
    "baselines.json": {"gzip": 1.5},
}


def make(folder: Path, *steps: int) -> Path:
    """A run with these checkpoints, of which only the copies are there."""
    for name, value in VALUES.items():
        (folder / name).write_text(json.dumps(value))
    for step in steps:
        (folder / f"checkpoints/{step}/run").mkdir(parents=True)
        kept = VALUES | {"baselines.json": {"gzip": float(step)}}
        (folder / f"checkpoints/{step}/run/metadata").write_text(json.dumps(kept))
    return folder


@given(st.floats() | st.lists(st.floats()) | st.dictionaries(st.text(), st.floats()))
def test_what_is_written_is_json_and_comes_back(value: Any) -> None:
    text = dumps({"value": value, "array": np.float64(0.1)})
    for word in ("NaN", "Infinity"):
        assert f": {word}" not in text.replace("-", "")
    found = loads(text)["value"]

    def same(found: Any, wanted: Any) -> bool:
        if isinstance(wanted, float):
            return found is None if not np.isfinite(wanted) else found == wanted
        if isinstance(wanted, list):
            return all(map(same, found, wanted))
        return all(same(found[name], one) for name, one in wanted.items())

    assert same(found, value)


@pytest.mark.parametrize("text", ['{"a": NaN}', "[Infinity]", "[1, -Infinity]", "{", "", "\0\0"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        loads(text)


def test_the_newest_copy_that_can_be_read_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, 3, 20, 100)
    (tmp_path / "checkpoints/100/run/metadata").write_text("{")
    for name in KEPT:
        (tmp_path / name).write_text("{")
    assert read_kept(tmp_path, "baselines.json") == {"gzip": 20.0}
    mend(tmp_path, begun=True)
    for name, value in VALUES.items():
        assert (tmp_path / f"broken-{name}").read_text() == "{"
        assert f"{name} is damaged" in caplog.text
        assert json.loads((tmp_path / name).read_text()) == ({"gzip": 20.0} if name == "baselines.json" else value)
    caplog.clear()
    mend(tmp_path, begun=True)
    assert caplog.text == ""


def test_without_a_copy_it_is_set_aside_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "passport.json").unlink()
    with pytest.raises(UserError, match="a damaged config.json .* and no copy"):
        read_kept(tmp_path, "config.json")
    with pytest.raises(UserError, match="holds no passport.json"):
        read_kept(tmp_path, "passport.json")
    mend(tmp_path, begun=True)
    assert "no checkpoint keeps a copy" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "baselines.json",
        "broken-config.json",
        "tokenizer.json",
    ]


LINES = [{"step": 1, "a": 0.1}, {"step": 2, "a": 1e-300}, {"step": 3, "a": [1.5, None]}]


@pytest.mark.parametrize(
    "bad",
    [b'{"step": 2, "tra', b"", b"\0\0\0", b"\xff", b'{"step": 2, "a": NaN}', b"[]", b'{"a": 1}', b'{"step": "2"}'],
)
@pytest.mark.parametrize("at", [0, 2, 3])
def test_bad_lines_are_set_aside_by_number(
    tmp_path: Path, bad: bytes, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    pieces = [json.dumps(line).encode() for line in LINES]
    pieces.insert(at, bad)
    file.write_bytes(b"\n".join(pieces) + (b"\n" if at < 3 or not bad else b""))
    assert read_lines(file) == (LINES, [(at + 1, bad)])
    mend_lines(file, 2)
    assert read_lines(file) == (LINES[:2], [])
    assert (tmp_path / "broken-metrics.jsonl").read_bytes() == bad + b"\n"
    assert f"line {at + 1} cannot be read" in caplog.text


def test_whole_lines_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    mend_lines(file, 3)
    assert not file.exists()
    text = "".join(f"{json.dumps(line)}\n" for line in LINES)
    file.write_text(text[:-1])  # killed between a line and its end
    mend_lines(file, 3)
    assert file.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_damaged_cache_is_set_aside_and_never_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "rate.json"
    assert read_cache(file, check_numbers) is None
    with caplog.at_level(logging.WARNING):
        for number, text in enumerate(("{", "[]", '{"a": NaN}', '{"a": "b"}'), 1):
            file.write_text(text)
            assert read_cache(file, check_numbers) is None
            assert (tmp_path / f"broken-rate{f'-{number}' if number > 1 else ''}.json").read_text() == text
    assert caplog.text.count("is damaged") == 4
    for whole in ({"a": 1.5}, {}):  # what compares with nothing else has no baselines
        file.write_text(json.dumps(whole))
        assert read_cache(file, check_numbers) == whole
    assert set_aside(file).name == "broken-rate-5.json"


WHOLE: dict[str, Any] = VALUES | {
    "config.json": VALUES["config.json"]
    | {"model": {"width": 16}, "data": {"path": "a", "seed": 0}, "train": {"steps": 9, "log_every": 3}},
    "passport.json": {"data": {"fingerprint": "f1n6er"}, "evaluation": {}, "cpus": 2},
    "tokenizer.json": {"kind": "bpe", "tokenizer": "{}"},
}
# Name of a file, section, key, another value (None: the key goes), and how it is named; "" where it may be so.
ALTERED = [
    ("config.json", "model", "width", None, "model.width: 16 -> None"),
    ("config.json", "model", "width", "16", "model.width: 16 -> '16'"),
    ("config.json", "model", "width", 16.0, "model.width: 16 -> 16.0"),
    ("config.json", "model", "width", 32, "model.width: 16 -> 32"),
    ("config.json", "train", "log_every", "3", "train.log_every: 3 -> '3'"),
    ("config.json", "train", "log_every", None, "train.log_every: 3 -> None"),
    ("config.json", None, "family", "other", "family: 'gpt' -> 'other'"),
    ("config.json", "model", "new", 1, "model.new: None -> 1"),
    ("config.json", "train", "steps", 8, "train.steps: 9 -> 8"),
    ("config.json", "train", "steps", None, "train.steps: 9 -> None"),
    ("config.json", "train", "steps", 10, ""),
    ("config.json", "train", "log_every", 4, ""),
    ("config.json", "data", "path", "b", ""),
    ("passport.json", "data", "fingerprint", "0ther", "fingerprint f1n6er -> 0ther"),
    ("passport.json", None, "evaluation", None, "evaluation"),
    ("passport.json", None, "cpus", 3, ""),
    ("tokenizer.json", None, "tokenizer", "{ }", "it encodes otherwise"),
    ("tokenizer.json", None, "kind", "bytes", "it encodes otherwise"),
]


@pytest.mark.parametrize(("name", "section", "key", "value", "told"), ALTERED)
@pytest.mark.parametrize("copied", ["both", "older", "none"])
def test_what_no_copy_says_is_damaged(
    name: str, section: str | None, key: str, value: Any, told: str, copied: str, tmp_path: Path, caplog: Any
) -> None:
    """A file that one checkpoint agrees with is whole, and one without any copy is believed."""
    folder = make(tmp_path, 3, 20)
    whole = json.loads(json.dumps(WHOLE))
    table = whole[name] if section is None else whole[name][section]
    table |= {key: value}
    if value is None:
        del table[key]
    for file, content in whole.items():
        (folder / file).write_text(json.dumps(content))
    for step in (3, 20):
        notes = {"none": "{", "both": json.dumps(WHOLE)}.get(copied) or json.dumps(whole if step == 3 else WHOLE)
        (folder / f"checkpoints/{step}/run/metadata").write_text(notes)
    mended = bool(told) and copied == "both"
    assert read_kept(folder, name) == (WHOLE if mended else whole)[name]
    mend(folder, begun=True)
    assert json.loads((folder / name).read_text()) == (WHOLE if mended else whole)[name]
    assert (folder / f"broken-{name}").exists() == mended
    sentence = f"{name} is damaged (it is not what checkpoint 20 has kept: {told}), and kept as broken-{name}; it is wr"
    assert (sentence in caplog.text) == mended
    assert ("damaged" in caplog.text) == mended
