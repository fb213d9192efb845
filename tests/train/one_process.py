"""One of several processes that train together: writes the losses, and what its devices saw of each batch, to a file.

Run as `python -m tests.train.one_process PORT PROCESSES NUMBER FILE`.
"""

import itertools
import math
import os
import pickle
import random
import sys
from typing import Any

import jax
import numpy as np

from tests.small import compiled_step, losses, random_batches, small_experiment, windows
from train.devices.mesh import AXES
from train.devices.together import meet
from train.sharding import placed

DEVICES, STEPS, MORE_STEPS = 8, 3, 20
DROPOUT = {"model.dropout": 0.1}
DRAWN = random.Random(0).sample([m for m in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(m) == DEVICES], 4)


def main(port: int, processes: int, number: int, result: str) -> None:
    """Trains on windows of a stream that every process can make for itself."""
    # Of a flag that is given twice the last counts. Unoptimised code is compiled three times sooner.
    os.environ["XLA_FLAGS"] += (
        f" --xla_force_host_platform_device_count={DEVICES // processes} --xla_backend_optimization_level=0"
    )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}", processes, number, initialization_timeout=60, heartbeat_timeout_seconds=60
    )
    assert (jax.process_count(), len(jax.devices())) == (processes, DEVICES)
    read = on_windows()
    drawn = [trained(shape) for shape in DRAWN if processes > 1]
    with open(result, "wb") as file:
        pickle.dump(read | {"drawn": drawn}, file)


def trained(shape: tuple[int, ...]) -> np.ndarray:
    """The losses on a mesh, of random batches."""
    experiment = small_experiment(**{f"mesh.{axis}": size for axis, size in zip(AXES, shape, strict=True)}, **DROPOUT)
    step = compiled_step(experiment)
    meet("compiled")
    return losses(experiment, step, random_batches(experiment, MORE_STEPS))


def on_windows() -> dict[str, Any]:
    """The rows that this process loads, what its devices see of some batches, and the losses."""
    # Four columns of devices share each row, so with four processes two of them must load the same rows.
    experiment = small_experiment(**{"mesh.fsdp": 2, "mesh.context": 4, "model.num_layers": 1}, **DROPOUT)
    batches = experiment.batches(windows(experiment), start=1)
    values, seen = [], []
    with placed(experiment.mesh, experiment.rules):
        state = experiment.make_state()
        for _, batch in zip(range(STEPS), batches, strict=False):
            seen.append(
                {
                    name: [(shard.index, np.asarray(shard.data)) for shard in x.addressable_shards]
                    for name, x in batch.items()
                }
            )
            state, metrics = experiment.step(state, batch)
            values.append(float(metrics["loss"]))
    return {"rows": experiment.rows, "losses": values, "seen": seen}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
