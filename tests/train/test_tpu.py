"""What is known by compiling, in processes of their own: memory on a TPU that is not here, and a deep stack's price."""

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

from launch.configs import load
from launch.planning.chips import parse_topology
from launch.planning.running import planned
from model.attention import MASKS
from tests.conftest import ROOT

ROWS, LENGTH, VOCAB = 128, 1024, 50304
needs_compiler = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu, the TPU compiler, is not installed here"
)


def last_line(module: str, *arguments: object) -> Any:
    """The last line that a module prints, as JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.rest
@needs_compiler
def test_gpt2_trains_on_a_v5e_4x4() -> None:
    """124M parameters in bfloat16, T=1024, 8 rows on each chip; `pytest -s` shows the peak."""
    keys = {"data.vocab_size": 50304, "data.batch_size": ROWS}
    found = planned(load("gpt:gpt2", **keys), parse_topology("v5e:4x4"))
    print(f"\n{found}")
    assert found["devices"] == 16
    assert 124e6 < found["parameters"] < 125e6
    # One chip's logits are 1.65 GB in float32, and never there at once; the whole batch's would be 26 GB. Without the
    # pins of model/axes.py it would be 23.6 GB.
    assert found["peak_bytes"] < 2.2 * ROWS / 16 * LENGTH * VOCAB * 4
    assert not found["whole_logits"]
    # Of the state (parameters and two moments, float32) a chip holds a sixteenth; all else is small.
    share = 3 * 4 * found["parameters"] / 16
    assert share < found["argument_bytes"] < 1.3 * share


@pytest.mark.rest
@needs_compiler
def test_splash_compiles_for_every_chip_head_width_and_mask() -> None:
    """Forward and backward, 4,096 places; `pytest -s` shows the share of the blocks that each mask skips."""
    found = last_line("tests.model.attention.tpu_attention", "cases")
    for one in found:
        print(one)
        assert one["kernels"] == ["dkv", "dq", "fwd"]
        # The slopes' gradient is blockwise's, a loop that must be gone where nobody asks for it.
        assert one["loops"] == 0
    chips, widths, masks = (set(column) for column in zip(*(one["case"][:3] for one in found), strict=True))
    assert {one["kind"] for one in found} == {"TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"}
    assert {(one["case"][0], one["case"][1]) for one in found} >= {(chip, K) for chip in chips for K in (64, 128, 256)}
    assert widths >= {16, 64, 96, 128, 192, 256}
    assert [name for name in MASKS if not any(name in text for text in masks)] == []
    # Grids shrink to the widest row of blocks.
    width, whole = next(one["width"] for one in found if "chunked(256)" in one["case"])
    assert (width, whole) == (1, 4)


@pytest.mark.rest
@needs_compiler
def test_splash_runs_in_the_step_of_seeds_on_a_mesh() -> None:
    """Under vmap over seeds, scan over layers and checkpoint, on each device: the forward kernel runs twice."""
    assert last_line("tests.model.attention.tpu_attention", "step") == {"fwd": 2, "dq": 1, "dkv": 1}


@pytest.mark.rest
@needs_compiler
@pytest.mark.parametrize("core", ["splash", "blockwise"])
def test_memory_grows_with_the_length_not_its_square(core: str) -> None:
    """Forward and backward on a v5e; from 8k to 32k places each costs as much as the one before."""
    peaks = last_line("tests.model.attention.tpu_attention", "memory", core, 4096, 8192, 16384, 32768)
    print(f"\n{core}: { ({T: f'{peak / 1e6:.1f} MB' for T, peak in peaks.items()}) }")
    slopes = [(peaks[str(2 * T)] - peaks[str(T)]) / T for T in (8192, 16384)]
    assert slopes[1] <= 1.1 * slopes[0]
    if core == "splash":
        dense = last_line("tests.model.attention.tpu_attention", "memory", "dense", 4096)["4096"]
        print(f"dense at 4096: {dense / 1e6:.1f} MB")
        assert peaks["4096"] <= 0.15 * dense


@pytest.mark.rest
def test_a_deep_stack_compiles_like_a_shallow_one() -> None:
    """48 scanned layers cost at most 1.3 times the compilation of 2, and the program is about as long."""
    found = last_line("tests.train.compile_time")
    print(f"\nCPU seconds and instructions by depth: {found}")
    (shallow_seconds, shallow_instructions), (deep_seconds, deep_instructions) = found["2"], found["48"]
    assert deep_instructions <= 1.02 * shallow_instructions
    assert deep_seconds <= 1.3 * shallow_seconds
