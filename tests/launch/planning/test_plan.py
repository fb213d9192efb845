"""Plans, by the real compiler for TPUs, of tiny steps; and what is refused before it is asked."""

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from launch import plan
from launch.configs import load
from launch.planning import running
from launch.planning.changes import largest_batch
from launch.planning.chips import Slice, parse_topology
from launch.planning.compiled.facts import LABELS, _needed, abstract_batch
from launch.planning.running import planned
from model import UserError
from tests.conftest import ROOT
from tests.launch.test_local import all_gone
from tests.tiny import call
from tests.train.tasks.every import CASES, FIRST, keys_of
from train.experiment import make_experiment
from train.sharding import placed

needs_compiler = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu, the TPU compiler, is not installed here"
)
WHERE = "v5e:2x2"
TINY = {
    "data.tokenizer": "bytes", "data.length": 256, "data.batch_size": 16, "model.num_layers": 2, "model.width": 256,
    "model.num_heads": 2, "model.dtype": "bfloat16", "model.remat": "full",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def found(**changes: Any) -> dict[str, Any]:
    return planned(load("base", **TINY | changes), parse_topology(WHERE))


@pytest.mark.rest
@needs_compiler
def test_the_classes_are_what_a_step_holds() -> None:
    """Parameters and optimizer to the byte; what is kept for the way back grows as layers and rows do; all of it is
    within a tenth of the compiler's own peak. (Of smaller arrays some lie in a faster memory, as far as that reaches.)
    """
    large = {"data.length": 2048, "data.batch_size": 128, "model.width": 1024, "model.num_heads": 8}
    keys = TINY | large
    one, deep, wide = (found(**large | more) for more in ({}, {"model.num_layers": 4}, {"data.batch_size": 256}))
    experiment = make_experiment(load("base", **keys), devices=jax.devices()[:4])
    own = {
        name: sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(x))
        for name, x in (("parameters", experiment.abstract.params), ("optimizer", experiment.abstract.opt_state))
    }
    for name, size in own.items():
        assert size <= one["classes"][name] <= 1.001 * size + 8192, name  # a place begins at multiples of 512 bytes
    saved = [plan["classes"]["saved_activations"] for plan in (one, deep, wide)]
    print(f"\nsaved activations: {saved}; {one}")
    a_layer = 32 * 2048 * 1024 * 2  # rows of a device, places, width, bytes
    assert saved[1] - saved[0] == pytest.approx(2 * a_layer, rel=0.05)
    assert saved[2] == pytest.approx(2 * saved[0], rel=0.05)
    for plan_of in (one, deep, wide):
        assert abs(plan_of["classes"]["unattributed"]) <= 0.1 * plan_of["peak_bytes"]
        assert plan_of["fits"]
        assert plan_of["collective_bytes"] == sum(plan_of["collective_bytes_by_kind"].values()) > 0
        assert plan_of["wire_bytes"] > 0
    assert one["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(experiment.abstract.params))
    assert one["cores"]["self"] == ["splash"]
    # Nearly all of a tiny step lies in the vector memory, of which 50 MB are no need of HBM.
    tiny = planned(load("gpt:ablation"), parse_topology(WHERE))
    assert 0.5 * tiny["peak_bytes"] < sum(tiny["classes"].values()) - tiny["classes"]["unattributed"]
    assert tiny["peak_bytes"] < 2**23


@pytest.mark.rest
@needs_compiler
def test_what_does_not_fit_is_told_with_what_does(tmp_path: Path) -> None:
    """Of the compiler's figure, and each try as it comes; the JSON has it, and the status is 1."""
    keys = TINY | {"data.batch_size": 16384, "model.remat": "full", "model.width": 1024, "model.num_layers": 4}
    words = [f"--config.{key}={value}" for key, value in keys.items()]
    file = tmp_path / "plan.json"
    outcome = call(plan.main, ["--config=configs/base.py", f"--topology={WHERE}", f"--json={file}", *words])
    assert outcome.status == 1, outcome.err
    one = json.loads(file.read_text())
    assert (one["fits"], one["peak_bytes"]) == (False, None)
    assert one["needed_bytes"] > one["hbm_bytes"]
    assert "DOES NOT FIT" in outcome.out
    assert "tried --config.train.accumulate=2 " in outcome.out
    assert "sent        unknown" in outcome.out
    size = one["tried"][-1]["largest_batch"]
    assert f"--config.data.batch_size={size}" in outcome.out
    assert planned(load("base", **keys | {"data.batch_size": size}), parse_topology(WHERE))["fits"]
    more = size + size // 4
    assert not planned(load("base", **keys | {"data.batch_size": more}), parse_topology(WHERE))["fits"]


@pytest.mark.rest
@needs_compiler
def test_between_slices_only_replica_goes() -> None:
    where = parse_topology(WHERE, 2)
    with pytest.raises(UserError, match=r"^--slices=2: between slices only replica goes, .*; set it to 2\."):
        planned(load("base", **TINY), where)
    one = planned(load("base", **TINY | {"mesh.replica": 2}), where)
    assert one["devices"] == 8
    # Each parameter's gradient is summed over both slices once, in the half precision in which it is made.
    assert 0.9 * one["parameters"] * 2 / 4 <= one["slow_bytes"] <= 1.3 * one["parameters"] * 4 / 4
    assert found()["slow_bytes"] == 0


@pytest.mark.rest
def test_every_task_is_lowered_without_its_data(tmp_path: Path) -> None:
    """The arrays that it says a batch has are those of its real batches, and what its step takes."""
    for task, family in FIRST:
        folder = tmp_path / task
        folder.mkdir()
        config = load("base", **keys_of(task, family, folder))
        experiment = make_experiment(config, devices=jax.devices()[:1])
        data = experiment.task.open(config)
        experiment = experiment.with_data(data)
        batch = next(experiment.batches(experiment.task.rows(data), 0))
        sizes = {
            "B": config.data.batch_size,
            "T": experiment.task.target_length(config.data.length),
            "S": config.data.length,
            "C": len(data.names),
            "2": 2,
        }
        said = {
            name: (tuple(sizes[axis] for axis in text.split()[0]), text.split()[1])
            for name, text in experiment.task.ARRAYS.items()
        }
        assert {name: (x.shape, str(x.dtype)) for name, x in batch.items()} == said, task
        planned_for = make_experiment(config, devices=jax.devices()[:2], labels=LABELS)
        step: Any = planned_for.step
        with placed(planned_for.mesh, planned_for.rules):
            step.lower(planned_for.abstract, abstract_batch(planned_for))
    assert len(FIRST) > 8
    assert {task for task, _ in CASES} == {task for task, _ in FIRST}


def test_a_kept_plan_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler is asked once for a step; what does not change it asks for none, what does for another."""
    asked = list[Any]()

    def compiled(job: dict[str, Any], _: float | None) -> dict[str, Any]:
        asked.append(job)
        return {"peak_bytes": 1, "hbm_bytes": 2, "fits": True, "steps": 0}

    monkeypatch.setattr(running, "_compiled", compiled)
    config, where = load("base", **TINY | {"train.seed": 77}), parse_topology(WHERE)
    assert planned(config, where)["steps"] == 1000
    assert planned(config, where) == planned(load("base", **TINY | {"train.seed": 77, "train.log_every": 3}), where)
    assert len(asked) == 1
    planned(load("base", **TINY | {"train.seed": 77, "data.batch_size": 32}), where)
    planned(config, parse_topology(WHERE, 2))
    planned(config, parse_topology("v5e:4x4"))
    assert len(asked) == 4
    for file in (Path(os.environ["XDG_CACHE_HOME"]) / "heed" / "plans").iterdir():
        file.write_text("[")  # damaged
    planned(config, where)
    planned(config, where)
    assert len(asked) == 5
    monkeypatch.setenv("XLA_FLAGS", "--of=another")  # which the compiler for TPUs is not given
    planned(config, where)
    assert len(asked) == 5
    for name in ("LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION"):
        monkeypatch.setenv(name, "another")
        planned(config, where)
    assert len(asked) == 7


@pytest.mark.parametrize(
    ("keys", "most", "largest", "tried"),
    [
        ({"data.batch_size": 24}, 16, 16, [8, 16]),  # 12 does not divide over eight devices
        ({"data.batch_size": 24}, 7, None, [8]),
        ({"data.batch_size": 64, "train.accumulate": 2, "mesh.tensor": 2}, 47, 40, [32, 48, 40]),
        ({"data.batch_size": 4096}, 3000, 2816, [2048, 3072, 2560, 2816]),  # to an eighth
        ({"data.batch_size": 8}, 7, None, []),
    ],
)
def test_the_largest_batch_that_fits_is_found(
    keys: dict[str, int], most: int, largest: int | None, tried: list[int]
) -> None:
    asked = []

    def plan(config: ConfigDict, where: Slice) -> dict[str, Any]:
        asked.append(config.data.batch_size)
        return {"needed_bytes": 1, "fits": config.data.batch_size <= most}

    assert largest_batch(load("base", **keys), parse_topology("v5e:2x4"), plan, lambda text: None) == largest
    assert asked == tried


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--topology=v5e:4x4", "--plan=configs/ablations/scale.py"],
            "give one of --config, of which a run is planned,",
        ),
        (["--topology=v5:4x4"], "'v5' is none of v4, v5e, v5p, v6e, tpu7x"),
        (["--topology=v5e:4x4", "--slices=0"], "--slices=0 must be at least 1."),
        (["--topology=v5e:4x4", "--price=-1"], "--price=-1.0 must be a number of at least 0."),
        (["--topology=v5e:4x4", "--price=nan"], "--price=nan must be a number of at least 0."),
        (["--topology=v5e:4x4", "--watts=inf"], "--watts=inf must be a number of at least 0."),
        (["--topology=v5e:4x4", "--json=no/a.json"], "--json=no/a.json must be a .json file in a folder that exists."),
        (["--topology=v5e:4x4", "--config.data.batch_size=24x"], "--config.data.batch_size"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_compiler_is_asked(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_compiled", lambda *job: pytest.fail("asked"))
    outcome = call(plan.main, ["--config=configs/base.py", *words])
    assert outcome.status == 2
    assert sentence in outcome.err.splitlines()[-1]


@pytest.mark.rest
@needs_compiler
def test_where_parameters_lie_is_listed() -> None:
    keys = ["--config.model.num_layers=3", "--config.model.width=64", "--config.mesh.tensor=2"]
    given = ["--config=configs/base.py", "--topology=v5e:2x2", "--shardings", *keys]
    outcome = call(plan.main, given)
    assert outcome.status == 0, outcome.err
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("stack.blocks.attention.query.kernel ")]
    assert "layers=3, embed=64 over fsdp, heads=" in line
    assert " over tensor, head=" in line
    assert "moments" not in line
    outcome = call(plan.main, [*given, "--config.mesh.rules=optimizer"])
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("stack.blocks.mlp.down.kernel ")]
    assert re.search(r" layers=3, mlp=\d+ over tensor, embed=64; moments layers=3, .* embed=64 over fsdp$", line), line


@pytest.mark.rest
@needs_compiler
def test_a_batch_that_the_mesh_does_not_divide_is_refused_in_a_sentence() -> None:
    outcome = call(
        plan.main, ["--config=configs/base.py", "--topology=v5e:4x4", "--config.data.batch_size=24", "--no-tries"]
    )
    assert outcome.status == 2
    assert "does not divide evenly over the mesh's replica=1 x fsdp=16" in outcome.err.splitlines()[-1]
    outcome = call(plan.main, ["--config=configs/base.py", "--topology=v5e:1x1"])
    assert outcome.status == 2
    assert "--topology=v5e:1x1 is no slice that the compiler knows (" in outcome.err.splitlines()[-1]


@pytest.mark.rest
@needs_compiler
@pytest.mark.parametrize(
    ("more", "number", "status"),
    [([], signal.SIGINT, 130), (["--search"], signal.SIGINT, 130), ([], signal.SIGTERM, -signal.SIGTERM)],
    ids=["plan", "search", "terminated"],
)
def test_what_ends_a_plan_ends_the_compiler_too(more: list[str], number: signal.Signals, status: int) -> None:
    """Within two seconds, and no process is left behind."""
    words = ["-m", "launch.plan", "--config=configs/gpt.py:llama_1b", "--topology=v5e:4x4", "--config.train.seed=5"]
    child = subprocess.Popen(
        [sys.executable, *words, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    compilers: list[int] = []
    while not compilers and time.monotonic() < deadline:
        time.sleep(0.2)
        compilers = _children(child.pid)
    time.sleep(2)
    child.send_signal(number)
    start = time.monotonic()
    child.communicate(timeout=60)
    assert child.returncode == status
    assert time.monotonic() - start < 2
    assert compilers
    assert all_gone([*map(str, compilers)])


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_a_program_needs_is_read_from_what_the_compiler_says() -> None:
    says = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G."
    assert _needed(says) == int(20.5 * 2**30)
    says = "Ran out of memory on HBM, the total memory required for HLO temporaries (600.00G) exceeds available HBM."
    assert _needed(says) == 600 * 2**30
    assert _needed("INTERNAL: something else") is None
