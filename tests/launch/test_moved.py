"""A run whose folder or text lies elsewhere now goes on there; other text is refused by its fingerprint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch import evaluate, train
from tests.tiny import Outcome, call, words, write_text

pytestmark = pytest.mark.rest
BPE = {"data.tokenizer": "bpe", "data.vocab_size": 300, "train.prompt": ""}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds `texts` and a run on them, which names them as they lie there."""
    home = tmp_path_factory.mktemp("moved")
    keys = write_text(home) | BPE | {"data.path": "text/*.txt"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert call(train.main, words("runs/a", keys)).status == 0
    return home


@pytest.fixture
def moved(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The keys of that run on a machine where all of it lies elsewhere, and nothing is prepared."""
    shutil.copytree(finished / "text", tmp_path / "new text")
    shutil.copytree(finished / "runs/a", tmp_path / "runs/b")
    monkeypatch.chdir(tmp_path)
    return write_text(tmp_path / "other") | BPE | {"data.path": "new text/*.txt", "data.dir": f"{tmp_path}/data"}


def scores(outcome: Outcome) -> list[str]:
    assert outcome.status == 0, outcome.err
    return outcome.out.splitlines()[1:]


def refused(outcome: Outcome) -> str:
    assert outcome.status == 2, outcome
    assert "Traceback" not in outcome.err
    return outcome.err.splitlines()[-1]


def test_a_run_whose_text_moved_is_evaluated_and_goes_on(
    finished: Path, moved: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, places = "--workdir=runs/b", [f"--config.{key}={moved[key]}" for key in ("data.path", "data.dir")]
    assert f"--config.data.path='text/*.txt' matches no file in {tmp_path}: give files" in refused(
        call(evaluate.main, [run])
    )
    there = scores(call(evaluate.main, [run, *places]))
    assert not list((tmp_path / "data/heed").glob("bpe-*"))  # its tokenizer is the run's own
    again = call(train.main, words("runs/b", moved | {"train.steps": 15}, "--extend"))
    assert "resumed from step 12\n" in again.err
    assert not list((tmp_path / "data/heed").glob("bpe-*"))
    assert json.loads((tmp_path / "runs/b/config.json").read_text())["data"]["path"] == "new text/*.txt"
    assert "step 15, " in call(evaluate.main, [run]).out
    monkeypatch.chdir(finished)
    assert scores(call(evaluate.main, ["--workdir=runs/a"])) == there


def test_other_text_is_refused(moved: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "new text/00.txt").write_text("other\n")
    before = {path.name: path.read_bytes() for path in (tmp_path / "runs/b").glob("*.json*")}
    learned = json.loads(before["passport.json"])["data"]["fingerprint"][:12]
    for command, argv in (
        (evaluate.main, ["--workdir=runs/b", "--config.data.path=new text/*.txt"]),
        (train.main, words("runs/b", moved)),
    ):
        last = refused(call(command, argv))
        assert "the text or its tokens changed since" in last
        assert f"(fingerprint {learned} -> " in last
        assert "the names of its files" in last
        assert "--config.data.path" in last
    assert {path.name: path.read_bytes() for path in (tmp_path / "runs/b").glob("*.json*")} == before


def test_renamed_files_are_refused(moved: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "new text/00.txt").rename(tmp_path / "new text/0.txt")
    last = refused(call(evaluate.main, ["--workdir=runs/b", "--config.data.path=new text/*.txt"]))
    assert "to which the names of its files belong, too: say where the same text lies now, under the same names" in last


def test_an_altered_tokenizer_and_fingerprint_are_mended(moved: dict[str, Any], tmp_path: Path) -> None:
    """They are JSON, from which the last merge is gone, and with another fingerprint."""
    run, places = tmp_path / "runs/b", [f"--config.{key}={moved[key]}" for key in ("data.path", "data.dir")]
    there = scores(call(evaluate.main, ["--workdir=runs/b", *places]))
    tokenizer, passport = (json.loads((run / name).read_text()) for name in ("tokenizer.json", "passport.json"))
    inner = json.loads(tokenizer["tokenizer"])
    inner["model"]["merges"].pop()
    (run / "tokenizer.json").write_text(json.dumps(tokenizer | {"tokenizer": json.dumps(inner)}))
    passport["data"]["fingerprint"] = "0ther"
    (run / "passport.json").write_text(json.dumps(passport))
    found = call(evaluate.main, ["--workdir=runs/b", *places])
    assert scores(found) == there
    again = call(train.main, words("runs/b", moved))
    assert again.status == 0, again.err
    for outcome in (found, again):
        assert "is damaged (it is not what checkpoint 12 has kept: it encodes otherwise)" in outcome.err
        assert "-> 0ther)" in outcome.err
    assert json.loads((run / "tokenizer.json").read_text()) == tokenizer
    assert json.loads((run / "broken-passport.json").read_text()) == passport


def test_an_evaluation_takes_no_other_key(moved: dict[str, Any]) -> None:
    last = refused(call(evaluate.main, ["--workdir=runs/b", "--config.data.path=x", "--config.data.length=3"]))
    assert last.startswith("--config.data.length: a run keeps the config it was trained with, but for where its text")
    assert "'no_such' is not prepared" in refused(
        call(evaluate.main, ["--workdir=runs/b", "--config.data.name=no_such"])  # which counts without the path
    )
