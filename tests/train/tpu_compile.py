"""A process of its own: compiles GPT-2's step for 16 TPU v5e with the real compiler, and prints what it found as JSON.

Run as `python -m tests.train.tpu_compile 128`, with the rows of a global batch.
"""

import json
import os
import re
import sys
from collections import Counter

os.environ.update(
    JAX_PLATFORMS="cpu",
    # There is no TPU to ask about itself.
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    # Two tests may compile at once.
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    # Four times sooner; of this program, the peak was 4.05 GB with it and 4.08 GB without.
    JAX_EXEC_TIME_OPTIMIZATION_EFFORT="-1",
)

import jax
from jax.experimental import topologies

from launch.configs import load
from tests.small import abstract_batch
from train.experiment import make_experiment
from train.sharding import placed

COLLECTIVES = r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def main(rows: int) -> None:
    """Prints the peak of one device's memory in bytes, the bytes of its share of the state, and the collectives."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
    # The vocabulary is rounded up, so that the mesh divides it.
    config = load("gpt:gpt2", **{"data.vocab_size": 50304, "data.batch_size": rows, "mesh.fsdp": 16})
    experiment = make_experiment(config, config.data.vocab_size, devices)
    with placed(experiment.mesh, experiment.rules):
        compiled = experiment.step.lower(experiment.abstract, abstract_batch(experiment)).compile()
    memory = compiled.memory_analysis()
    found = {
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(experiment.abstract.params)),
        "peak": memory.peak_memory_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "collectives": Counter(re.findall(COLLECTIVES, compiled.as_text())),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
