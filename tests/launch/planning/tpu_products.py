"""A process of its own: compiles steps for a v5e:4x4 that is not here, and prints what they multiply, a line each.

Run as `python -m tests.launch.planning.tpu_products LAYERS,REMAT,VOCABULARY ...`: FLOPs of a step of all devices.
"""

import sys
import tempfile
from typing import Any

from launch.planning.compiled.child import prepare

SIZES = {"data.length": 1024, "data.batch_size": 32, "model.width": 512, "model.num_heads": 4}
# A product that is cut to be sent in parts, in a loop, is padded.
WHOLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def main() -> None:
    """Each case: so many unrolled layers, what is done again, and so many tokens."""
    from launch.configs import load
    from launch.planning.chips import parse_topology
    from launch.planning.compiled.devices import slice_devices
    from launch.planning.compiled.facts import abstract_batch
    from launch.planning.compiled.flops import executed_flops
    from train.experiment import make_experiment
    from train.sharding import placed

    devices = slice_devices(parse_topology("v5e:4x4"))
    for case in sys.argv[1:]:
        layers, remat, vocabulary = case.split(",")
        own = {"num_layers": int(layers), "unroll": int(layers), "remat": remat, "core": "dense", "dtype": "bfloat16"}
        changes = SIZES | {f"model.{key}": value for key, value in own.items()} | {"data.vocab_size": int(vocabulary)}
        experiment = make_experiment(load("base", **changes), devices=devices)
        step: Any = experiment.step
        with placed(experiment.mesh, experiment.rules):
            lowered = step.lower(experiment.abstract, abstract_batch(experiment))
        print(executed_flops(lowered.compile(WHOLE).as_text()) * len(devices), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        main()
