"""A process of its own: compiles steps for TPUs that are not here, with the real compiler, and prints what it found.

Run as `python -m tests.train.tpu_compile`, with the names of some cases or without for all: a line of JSON for each.
"""

import json
import math
import os
import sys
from typing import Any

os.environ.update(
    JAX_PLATFORMS="cpu",
    # There is no TPU to ask about itself.
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    # Two tests may compile at once.
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)

import jax
from jax.experimental import topologies

from launch.configs import load
from launch.planning.compiled.traffic import has_whole_logits, traffic
from tests.small import abstract_batch
from train.experiment import make_experiment
from train.sharding import placed

# The slice, the config, and its changes; all devices share the parameters, and splash attends where it can.
PAIRS = {"task": "translation", "data.vocab_size": 32127}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # The vocabulary is rounded up, so that the mesh divides it.
    "gpt2": ("v5e:4x4", "gpt:gpt2", {"data.vocab_size": 50304, "data.batch_size": 128, "model.core": "auto"}),
    "llama_1b": ("v5e:4x4", "gpt:llama_1b", {}),
    "llama_8b": ("v5e:16x16", "gpt:llama_8b", {}),
    "llama_8b, 4 sequences": ("v5e:16x16", "gpt:llama_8b", {"data.batch_size": 1024}),
    # Dropout of weights and T5's bias are not for splash. Pairs of 512 on both sides: the targets of T5's own task are
    # a quarter of that.
    "bert_base": ("v5e:4x4", "bert:base", {"model.core": "auto"}),
    "t5_base": ("v5e:4x4", "encoder_decoder:t5_base", {"model.core": "auto"} | PAIRS),
}


def compiled(topology: str, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The peak of one device's memory in bytes, the bytes of its share of the state, what it sends in a step, and
    whether it ever has the logits of all its tokens.
    """
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    config = load(name, **{"mesh.fsdp": len(devices), "model.core": "splash"} | changes)
    experiment = make_experiment(config, devices=devices)
    batch = abstract_batch(experiment)
    batch |= dict.fromkeys(("sources", "source_segment_ids", "source_positions"), batch["tokens"])  # of pairs alone
    with placed(experiment.mesh, experiment.rules):
        program = experiment.step.lower(experiment.abstract, batch).compile()
    memory, sent = program.memory_analysis(), traffic(program.as_text())
    tokens = math.prod(experiment.sharding.shard_shape(experiment.shape)) // config.train.accumulate
    return {
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(experiment.abstract.params)),
        "peak": memory.peak_memory_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "sent": sum(sent.values()),
        "collectives": sent,
        "whole_logits": has_whole_logits(program.as_text(), tokens, experiment.model_config.vocab_size),
    }


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        print(json.dumps({"case": case} | compiled(*CASES[case])), flush=True)
