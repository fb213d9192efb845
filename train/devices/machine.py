"""What this machine can do, measured at each start, the best kept; and where things are kept."""

import functools
import logging
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from train.run.files.json_files import check_numbers, read_cache, write

log = logging.getLogger("heed")
_SECONDS = 0.3  # of measuring; compiling comes on top


def cache_folder() -> Path:
    """Returns the folder of what can be made again: $XDG_CACHE_HOME/heed, by default ~/.cache/heed."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heed"


def use_compilation_cache() -> Path:
    """Turns on the cache of compiled programs, unless JAX_COMPILATION_CACHE_DIR has done so; returns its folder."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    return Path(jax.config.values["jax_compilation_cache_dir"])


def compiler_options(platform: str) -> dict[str, int]:
    """Returns what a program for this platform is compiled with: on a CPU, LLVM's first level of optimization.

    The quickstart's step is compiled in two thirds of the third level's time then, and its first values in a quarter.
    It runs as fast, to the same bits: products are a library's, and XLA writes its own loops as vectors.
    """
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else {}


def device_memory(device: jax.Device) -> int:
    """Returns the bytes that arrays may take on a device; a CPU has the machine's, which its devices share."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats["bytes_limit"] if stats else host_memory()


def peak_memory() -> int | None:
    """Returns the bytes of the fullest device of this process when most was there, None where it does not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one), default=None)


def host_memory() -> int:
    """Returns the bytes of the machine's memory, or of the part of it that this container may use."""
    whole, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), Path("/sys/fs/cgroup/memory.max")
    try:
        return min(whole, int(limit.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return whole


def machine_rate(dtype: str) -> float:
    """Returns the FLOP/s of matrix products on all devices together; those that a CPU is split into share its rate."""
    return matrix_rate(dtype) * (jax.process_count() if jax.default_backend() == "cpu" else jax.device_count())


def matrix_rate(dtype: str) -> float:
    """Returns the FLOP/s of a large square matrix product on one device: the highest that any start has measured here.

    A machine that others used would be slow for ever if it were measured once. Kept in the cache folder by device
    kind, number of CPU cores, dtype and version of jax, until the file is deleted.
    """
    file = cache_folder() / "matrix_rate.json"
    device = jax.local_devices()[0]
    key = f"{device.device_kind}, {os.cpu_count()} cores, {dtype}, jax {jax.__version__}"
    known = read_cache(file, check_numbers) or {}
    measured = _measure(dtype, device)
    if measured > known.get(key, 0.0):
        known[key] = measured
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file, known)
        except OSError as error:
            log.warning(
                "the matrix rate cannot be kept in %s (%s): it is measured at each start.", file, error.strerror
            )
    return known[key]


@functools.cache  # a process starts once
def _measure(dtype: str, device: jax.Device) -> float:
    """2 n^3 / the shortest time of x @ y, which others disturb least; random, since some chips are faster on zeros."""
    n = 1024 if device.platform == "cpu" else 8192
    with jax.default_device(device):
        x, y = (jax.random.normal(key, (n, n), dtype) for key in jax.random.split(jax.random.key(0)))
        product = jax.jit(jnp.matmul)
        product(x, y).block_until_ready()
        times: list[float] = []
        while sum(times) < _SECONDS and len(times) < 50:
            began = time.perf_counter()
            product(x, y).block_until_ready()
            times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times)
