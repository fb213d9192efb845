"""A run is read on other devices than those that trained it, wherever its parameters lay there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from eval.runs import open_run
from launch import evaluate, explain, generate, train
from launch.configs import load
from launch.train import fit
from tests.conftest import ROOT
from tests.tiny import call, words, write_text

pytestmark = pytest.mark.rest
PLACED = {
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "mesh.context": 2,
    "mesh.rules": "replicated",
    "mesh.place": "*.up.*=layers:fsdp & embed:tensor+context, norm.*=norm:context",
    "model.num_layers": 2,  # over which eight devices could not divide anything
    "train.accumulate": 1,
}
# The commands that read a run, one after the other.
READ = """
import sys
from launch import cli, evaluate, explain, generate
for main, line in zip((evaluate.main, generate.main, explain.main), sys.argv[1:], strict=True):
    main(line.split("\\t"))
"""


def test_what_is_read_on_eight_devices_and_on_one_is_the_same(tmp_path: Path) -> None:
    """Scores, what is written, a picture, and what a token is due to."""
    assert call(train.main, words(tmp_path / "run", write_text(tmp_path) | PLACED)).status == 0
    run = f"--workdir={tmp_path}/run"
    lines = [
        [run],
        [run, "--prompt=def", "--temperature=0", "--max-new-tokens=9", f"--attention={tmp_path}/a.png"],
        [run, "--input=def main", "--methods=rollout,gradient"],
    ]
    assert len(jax.devices()) == 8
    assert open_run(tmp_path / "run").experiment.mesh.shape["fsdp"] == 8
    eight = "".join(
        call(one, line).out for one, line in zip((evaluate.main, generate.main, explain.main), lines, strict=True)
    )
    env = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}
    done = subprocess.run(
        [sys.executable, "-c", READ, *map("\t".join, lines)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    number = re.compile(r"-?\d+\.\d+")
    assert number.sub("", done.stdout) == number.sub("", eight)
    found, wanted = ([float(text) for text in number.findall(some)] for some in (done.stdout, eight))
    assert len(wanted) > 20
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-4)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A run of three seeds of width 10, and the last validation losses of these."""
    folder = tmp_path_factory.mktemp("three")
    keys = write_text(folder) | {"train.seeds": 3, "model.width": 10, "model.head_width": 4}
    return folder / "run", fit(load("base", **keys), f"{folder}/run")[1][-1]["val/loss"]


@pytest.mark.parametrize(("devices", "shape"), [(8, (1, 8)), (6, (3, 2)), (3, (3, 1)), (2, (1, 2))], ids=str)
def test_seeds_are_read_on_any_number_of_devices(
    three: tuple[Path, np.ndarray], devices: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first one's scores; `replica` has as many devices as do not divide the width, if they divide the seeds."""
    some = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda: some)
    run = open_run(three[0])
    assert (run.experiment.mesh.shape["replica"], run.experiment.mesh.shape["fsdp"]) == shape
    np.testing.assert_allclose(evaluate.evaluate(run)["val/loss"], three[1][0], rtol=1e-5)
