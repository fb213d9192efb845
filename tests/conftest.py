"""The machine that the tests believe they run on: eight devices of a CPU, strict JAX, no network.

All of it is set in the environment before jax is imported, so that the processes which tests start inherit it.
"""

import gc
import os
import signal
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
# XLA's code for loops of before its fusion emitters. Where it is gone, its flag would end the process.
HAS_OLDER_LOOPS = tuple(map(int, version("jaxlib").split(".")[:3])) < (0, 11, 1)

os.environ.update(
    JAX_PLATFORMS="cpu",
    XLA_FLAGS=" ".join(
        [
            "--xla_force_host_platform_device_count=8",
            # Eight devices on two busy cores may wait long for one another; XLA aborts the process after 40 s.
            "--xla_cpu_collective_call_terminate_timeout_seconds=300",
            # Two thirds of the tests' time is compiling what runs once, and these halve it; the level is heed's own.
            # Every command of the README runs with the defaults in CI.
            "--xla_backend_optimization_level=1",
            "--xla_cpu_use_fusion_emitters=false" if HAS_OLDER_LOOPS else "",
            os.environ.get("XLA_FLAGS", ""),  # last, and so it has the last word
        ]
    ),
    JAX_NUMPY_RANK_PROMOTION="raise",
    JAX_COMPILATION_CACHE_DIR=str(CACHE / "xla"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.2",
    TFDS_DATA_DIR=str(CACHE / "tensorflow_datasets"),  # not the home folder
    XDG_CACHE_HOME=str(CACHE),  # where heed keeps the matrix rate and the baselines
    HF_HUB_OFFLINE="1",
    MPLBACKEND="agg",
)
# Where the tests were started in the background, all that they start would be deaf to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The README's paths are relative to the root.
os.chdir(ROOT)

# The same examples each time; a first example that compiles is no reason to fail.
settings.register_profile("heed", derandomize=True, deadline=None, database=None)
settings.load_profile("heed")


@pytest.fixture(autouse=True, scope="module")
def _forgotten() -> Iterator[None]:
    """What a file has compiled goes with it: kept to the end, it is gigabytes and tens of thousands of mapped pages in
    each worker, beyond which XLA ends the process.
    """
    yield
    import jax  # only after the environment above

    jax.clear_caches()
    gc.collect()
