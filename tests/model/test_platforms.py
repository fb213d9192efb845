"""What the C library is told of memory, in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

from model.platforms import has_accelerator

STEPS = """
import resource, statistics
import jax, jax.numpy as jnp
import model

def step(x):  # what it needs beside x and its result, at least 64 MB, is freed at its end
    return jnp.tanh(jnp.outer(x, x)).cumsum(0).sum(0)

step, x, faults = jax.jit(step), jnp.arange(4096.0), []
for _ in range(21):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(statistics.median(faults)))
"""


@pytest.mark.skipif(has_accelerator(), reason="steps run on an accelerator")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have ways of their own")
def test_a_step_finds_the_memory_of_the_step_before() -> None:
    """Most steps on 64 MB take no page anew, which would be 16,384 pages each.

    Now and then one does, until the holes between what lives longer are large enough.
    """
    given = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "JAX_CPU_"))}
    done = subprocess.run([sys.executable, "-c", STEPS], env=given, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4096
