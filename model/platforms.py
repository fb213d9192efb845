"""Tells jax of a machine without accelerators; `model/__init__.py`, which all import, does so before it computes."""

import importlib.util
from pathlib import Path

import jax

_GOOGLE, _NVIDIA = "0x1ae0", "0x10de"  # makers of accelerators, as PCI knows them


def _only_cpu() -> bool:
    """Whether libtpu is here, to compile for TPUs, on a machine that has neither a TPU nor a GPU."""
    if importlib.util.find_spec("libtpu") is None:
        return False
    makers = {file.read_text().strip() for file in Path("/sys/bus/pci/devices").glob("*/vendor")}
    return not makers & {_GOOGLE, _NVIDIA}


# jax would look for a TPU at its first use, slowly and with a page of warnings, and then take the CPU all the same.
if not jax.config.values["jax_platforms"] and _only_cpu():
    jax.config.update("jax_platforms", "cpu")
