"""A run that diverges is told so, and what it leaves is never kept as the best."""

from pathlib import Path

from launch import train
from tests.tiny import call, saved, words, write_text


def test_a_diverged_run_is_told_and_never_the_best(tmp_path: Path) -> None:
    """At a learning rate of 3000, where all numbers are finite: of a sound run, step 2 would be kept as the best."""
    text = write_text(tmp_path / "text")
    short = {"train.steps": 3, "train.evaluate_every": 2, "train.checkpoint_every": 1, "train.keep_last": 1}
    keys = text | short | {"optimizer.learning_rate": 3000.0, "optimizer.weight_decay": 0.0}
    wild = call(train.main, words(tmp_path / "wild", keys))
    assert "step 2: the run has collapsed, the residual stream reaches " in wild.err, wild
    assert "this state is not kept as the best" in wild.err
    assert saved(tmp_path / "wild") == [3]
