"""What is known by compiling, in processes of their own: memory on a TPU that is not here, and a deep stack's price."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS, LENGTH, VOCAB = 128, 1024, 50304


def last_line(module: str, *arguments: object) -> Any:
    """The last line that a module prints, as JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu, the TPU compiler, is not installed here")
def test_gpt2_trains_on_a_v5e_4x4() -> None:
    """124M parameters in bfloat16, T=1024, 8 rows on each chip; `pytest -s` shows the peak."""
    found = last_line("tests.tpu_compile", ROWS)
    print(
        f"\npeak of one chip: {found['peak'] / 1e9:.2f} GB, of it the state {found['arguments'] / 1e9:.2f} GB; {found}"
    )
    assert (found["devices"], found["kind"]) == (16, "TPU v5 lite")
    assert 124e6 < found["parameters"] < 125e6
    assert found["peak"] < 16e9, "a v5e has 16 GB"
    # One chip's logits are 1.65 GB in float32. All is sharded: the whole batch's logits, unsharded, would be 26 GB.
    # Without the pins of model/axes.py it would be 23.6 GB.
    logits = ROWS / 16 * LENGTH * VOCAB * 4
    assert logits < found["peak"] < 3 * logits
    # Of the state (parameters and two moments, float32) a chip holds a sixteenth; all else is small.
    share = 3 * 4 * found["parameters"] / 16
    assert share < found["arguments"] < 1.3 * share


def test_a_deep_stack_compiles_like_a_shallow_one() -> None:
    """48 scanned layers cost at most 1.3 times the compilation of 2, and the program is about as long."""
    found = last_line("tests.compile_time")
    print(f"\nCPU seconds and instructions by depth: {found}")
    (shallow_seconds, shallow_instructions), (deep_seconds, deep_instructions) = found["2"], found["48"]
    assert deep_instructions <= 1.02 * shallow_instructions
    assert deep_seconds <= 1.3 * shallow_seconds
