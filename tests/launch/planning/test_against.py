"""A run beside its plan, and what it leaves for later plans of its chip."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from launch import plan, train
from launch.configs import load
from launch.planning import against, running
from launch.planning.chips import parse_topology
from model import UserError
from tests.tiny import SIZES, call, words, write_text
from train.run.files.json_files import dumps

HERE = parse_topology("cpu:8", here=True)
FACTS = {
    "topology": "cpu:8", "slices": 1, "devices": 8, "device_kind": "cpu", "mesh": {"fsdp": 8}, "parameters": 7,
    "tokens_per_step": 256, "labels": 0, "flops_per_token": 1e6, "attention_flops_per_token": 1e5,
    "executed_flops_per_token": 1.1e6, "collective_bytes": 0, "collective_bytes_by_kind": {}, "wire_bytes": 0,
    "asynchronous_bytes": 0, "slow_bytes": 0, "slow_wire_bytes": 0, "collective_calls": 3, "replicated_bytes": {},
    "peak_bytes": 2**20, "needed_bytes": 2**20, "hbm_bytes": 2**30, "fits": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(against, "_differs", lambda commit: False)  # whoever tests has changed something


def left(folder: Path, config: ConfigDict, speeds: dict[int, float], **devices: Any) -> Path:
    """What a run of the config leaves that told these tokens a second at these steps."""
    folder.mkdir()
    lines = [{"step": 1, "train/loss": 3.0}]
    lines += [{"step": step, "train/tokens_per_second": speed} for step, speed in speeds.items()]
    there = {"kind": "cpu", "platform": "cpu", "count": 8} | devices
    git, data = {"commit": "ab" * 20, "changed": False}, {"fingerprint": "x"}
    passport = {"devices": there, "packages": {"jax": jax.__version__}, "git": git, "data": data}
    (folder / "passport.json").write_text(dumps(passport))
    (folder / "config.json").write_text(dumps(config.to_dict()))
    (folder / "metrics.jsonl").write_text("".join(f"{dumps(line)}\n" for line in lines))
    return folder


def test_a_run_corrects_the_plans_of_its_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it took over what the model says without any correction; the JSON says by whom; other chips stay."""
    monkeypatch.setattr(running, "_compiled", lambda job, *rest: FACTS)
    config = load("base", **SIZES)
    raw = plan.plan(config, HERE)["model"]
    assert (raw["factor"], raw["factor_origin"]) == (1, None)
    for speed, name in ((100.0, "one"), (50.0, "two")):  # the second one starts from the model again, too
        run = left(tmp_path / name, config, {5: 3.0, 10: speed, 15: 1e6})
        before = plan.plan(config, HERE)["model"]["seconds_per_step"]
        flags = [f"--against={run}", "--topology=cpu:8", f"--json={tmp_path}/{name}.json"]
        keys = [f"--config.{key}={value}" for key, value in SIZES.items()]
        outcome = call(plan.main, ["--config=configs/base.py", *flags, *keys])
        assert outcome.status == 0, outcome.err
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["against"]["measured_seconds"] == 256 / speed
        assert found["against"]["predicted_seconds"] == before
        assert (found["against"]["predicted_peak_bytes"], found["against"]["peak_bytes"]) == (2**20, None)
        assert f"{before:.3g} s predicted and {256 / speed:.3g} s measured; memory 1.00 MiB predicted and unknown" in (
            outcome.out
        )
        later = plan.plan(config, HERE)["model"]
        assert later["seconds_per_step"] == pytest.approx(256 / speed)
        assert later["factor"] == pytest.approx(256 / speed / raw["seconds_per_step"])
        origin = later["factor_origin"]
        assert (origin["run"], origin["steps"], origin["device_kind"]) == (str(run), 14, "cpu")
        assert f", x{later['factor']:.3g} by {run} ({origin['date']}) (" in outcome.out
        assert "at least, a model" not in outcome.out
    assert against.correction(parse_topology("v5e:4x4")) == {"factor": 1, "factor_origin": None}


@pytest.mark.parametrize(
    ("devices", "speeds", "changes", "sentence"),
    [
        ({"count": 4}, {5: 1.0}, {}, r"ran on 4 x cpu, and --topology=cpu:8 is another: plan for what it ran on\."),
        ({"platform": "tpu", "kind": "TPU v4"}, {5: 1.0}, {}, r"ran on 8 x TPU v4, and --topology=cpu:8 is another"),
        ({}, {}, {}, r"holds no step that was timed: let it run beyond --config\.train\.log_every\."),
        ({}, {5: 1.0}, {"model.width": 32}, r"model\.width=16, and 32 is planned: give --config\.model\.width of it\."),
        ({}, {5: 1.0}, {"mesh.fsdp": -1}, r"ran with mesh\.fsdp=1, and 8 is planned"),
    ],
)
def test_a_run_of_something_else_is_refused(
    devices: dict[str, Any], speeds: dict[int, float], changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    run = left(tmp_path / "run", load("base", **SIZES), speeds, **devices)
    with pytest.raises(UserError, match=rf"^--against={run} .*{sentence}"):
        against.measured(str(run), load("base", **SIZES | {"train.seed": 7, "data.path": "moved"} | changes), HERE)


def test_a_run_of_other_code_or_another_chip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("base", **SIZES)
    run = against.measured(str(left(tmp_path / "run", config, {5: 1.0})), config, HERE)
    with pytest.raises(UserError, match=r"ran on TPU v4, and --topology=cpu:8 is of cpu: plan for what it ran on\."):
        against.learn(run | {"device_kind": "TPU v4"}, FACTS, HERE)
    monkeypatch.setattr(against, "_differs", lambda commit: True)
    with pytest.raises(UserError, match=r"ran with the code of abababababab, and model/ or train/ are others here"):
        against.measured(str(tmp_path / "run"), config, HERE)
    monkeypatch.undo()
    assert against._differs("0" * 40)
    with pytest.raises(UserError, match=r"^--against=.* holds no passport\.json: give the folder"):
        against.measured(str(tmp_path), config, HERE)


def test_the_run_says_what_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --config it is its own; of a mesh, -1 is what remains."""
    monkeypatch.setattr(running, "_compiled", lambda job, *rest: FACTS | {"given": job["config"]})
    config = load("base", **SIZES | {"mesh.fsdp": -1})
    run = left(tmp_path / "run", config, {5: 1.0})
    given = ["--topology=cpu:8", f"--against={run}"]
    outcome = call(plan.main, [*given, f"--json={tmp_path}/plan.json"])
    assert outcome.status == 0, outcome.err
    assert json.loads((tmp_path / "plan.json").read_text())["given"] == json.loads((run / "config.json").read_text())
    assert against.measured(str(run), load("base", **SIZES | {"mesh.fsdp": 8}), HERE)["steps"] == 4
    outcome = call(plan.main, [*given, "--config.model.width=32"])
    assert outcome.status == 2
    assert outcome.err.splitlines()[-1] == (
        f"--against={run} plans the run's own config: leave --config.model.width out."
    )
    outcome = call(plan.main, ["--topology=cpu:8", "--against=gs://No/run"])
    assert outcome.err.splitlines()[-1].startswith("--against=gs://No/run is no folder")


@pytest.mark.rest
def test_a_real_run_is_set_beside_its_plan(tmp_path: Path) -> None:
    """Of a program that is compiled for this machine as the run's was; the plan then says what the run took."""
    keys = write_text(tmp_path) | {"mesh.fsdp": 2, "train.steps": 20, "train.log_every": 5}
    outcome = call(train.main, words(tmp_path / "run", keys))
    assert outcome.status == 0, outcome.err
    given = [word for word in words("", keys) if not word.startswith("--workdir")]
    flags = ["--topology=cpu:8", f"--against={tmp_path}/run", f"--json={tmp_path}/plan.json"]
    outcome = call(plan.main, [*flags, *given])
    assert outcome.status == 0, outcome.err
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["model"]["seconds_per_step"] == pytest.approx(found["against"]["measured_seconds"])
    assert found["devices"] == 2
    assert found["fits"]
    assert found["executed_flops_per_token"] > 0
    assert list((Path(os.environ["XDG_CACHE_HOME"]) / "heed" / "factors").iterdir())
