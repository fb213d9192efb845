"""Tells jax and the C library of a machine without accelerators; `model/__init__.py`, which all import, does so before
anything is computed."""

import ctypes
import importlib.util
import os
import platform
from pathlib import Path

import jax

_GOOGLE, _NVIDIA = "0x1ae0", "0x10de"  # makers of accelerators, as PCI knows them
_USERS = "MALLOC_", "GLIBC_", "JAX_CPU_ENABLE_ASYNC_DISPATCH"  # variables of who has chosen for himself
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def has_accelerator() -> bool:
    """Whether this machine has a TPU or a GPU, by the makers of its PCI devices."""
    makers = {file.read_text().strip() for file in Path("/sys/bus/pci/devices").glob("*/vendor")}
    return bool(makers & {_GOOGLE, _NVIDIA})


def _keep_freed_memory() -> None:
    """Lets glibc keep freed memory, but for more than 2 GiB at the heap's end, instead of giving it back to the kernel.

    XLA frees what a step needs at its end; to get it back in the next one, page by page and zeroed, takes a CPU 6 to 20
    % of the step. Memory is kept for the main thread alone, so that is the one to run steps: nothing is lost by that
    where no device computes while the host goes on. What the environment says of it has the last word.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith(_USERS) for name in os.environ):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        jax.config.update("jax_cpu_enable_async_dispatch", False)


if not has_accelerator():
    _keep_freed_memory()
    # jax would look for a TPU at its first use, slowly and with a page of warnings, and then take the CPU all the same.
    if not jax.config.values["jax_platforms"] and importlib.util.find_spec("libtpu") is not None:
        jax.config.update("jax_platforms", "cpu")
