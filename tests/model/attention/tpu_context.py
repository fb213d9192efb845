"""A process of its own: compiles attention over a split sequence for TPU v5e with the real compiler, and prints as JSON
what one device holds.

Run as `python -m tests.model.attention.tpu_context`.
"""

import json
import math
import os
import re
from collections import Counter

os.environ.update(
    JAX_PLATFORMS="cpu",
    # There is no TPU to ask about itself.
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    # Two tests may compile at once.
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    JAX_EXEC_TIME_OPTIMIZATION_EFFORT="-1",
)

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from model.attention import Scores, attend, causal
from model.axes import partition_spec
from train.devices.mesh import make_mesh, make_rules
from train.sharding import placed

H, K = 8, 128
ARRAY = r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]"
COLLECTIVES = r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
# The core, the devices that share a sequence, and its lengths.
CASES = [("ring", 16, [8192, 16384, 32768]), ("ring", 8, [32768]), ("ulysses", 8, [8192, 16384, 32768])]


def main() -> None:
    """Prints, for each case and length, the peak of one device's memory in bytes, the number of elements of the largest
    array that occurs anywhere in its program, and the collectives.
    """
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
    found = {}
    for core, C, lengths in CASES:
        mesh = make_mesh({"replica": 1, "fsdp": 1, "tensor": 1, "context": C}, devices[:C])
        found[f"{core} {C}"] = {T: compiled(core, mesh, T) for T in lengths}
    print(json.dumps(found))


def compiled(core: str, mesh: Mesh, T: int) -> dict[str, object]:
    """What the program of attention and its gradients looks like for one row of T tokens."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array) -> tuple[jax.Array, ...]:
        o, pull = jax.vjp(lambda *qkv: attend(core, *qkv, Scores(causal(), K**-0.5)), q, k, v)
        return o, *pull(do)

    with placed(mesh, make_rules(1)):
        sharding = NamedSharding(mesh, partition_spec(("batch", "length", "heads", None)))
        x_BTHK = jax.ShapeDtypeStruct((1, T, H, K), "bfloat16", sharding=sharding)
        program = jax.jit(run).lower(*[x_BTHK] * 4).compile()
    text = program.as_text()
    return {
        "peak": program.memory_analysis().peak_memory_in_bytes,
        "largest": max(math.prod(map(int, shape.split(","))) for shape in re.findall(ARRAY, text)),
        "collectives": Counter(re.findall(COLLECTIVES, text)),
    }


if __name__ == "__main__":
    main()
