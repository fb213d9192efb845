"""One of several processes that train together: writes the losses, and what its devices saw of each batch, to a file.

Run as `python -m tests.train.one_process PORT PROCESSES NUMBER FILE`.
"""

import os
import pickle
import sys

import jax
import numpy as np

from tests.small import small_experiment, windows
from train.sharding import placed

DEVICES, STEPS = 4, 3


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
    # Two columns of devices share each row, so with four processes two of them must load the same rows.
    experiment = small_experiment(**{"mesh.fsdp": 2, "mesh.context": 2, "model.num_layers": 1, "model.dropout": 0.1})
    batches = experiment.batches(windows(experiment), start=1)
    losses, seen = [], []
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
            losses.append(float(metrics["loss"]))
    with open(result, "wb") as file:
        pickle.dump({"rows": experiment.rows, "losses": losses, "seen": seen}, file)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
