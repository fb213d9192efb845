"""Whether a run has collapsed: its numbers are finite, and it no longer learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.inspection import norm_inputs
from train.devices.placing import on_host
from train.devices.together import compiled_together
from train.experiment import Experiment
from train.state import Params
from train.tasks.base import Batch

LARGEST = 1e6  # of the residual stream: beyond, float32 adds a sound branch to it with less than an int8's precision
LEAST = 1e-6  # standard deviation of a norm's input as a part of its largest entry: below, only rounding is normalised


@dataclasses.dataclass
class Watch:
    """Looks at the validation loss of a state, and at what its norms get of one batch, this process's rows of it."""

    experiment: Experiment
    batch: dict[str, np.ndarray]
    collapsed_at: int = -1

    def __post_init__(self) -> None:
        config = self.experiment.model_config
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))))

        def look(params: Params, batch: Batch) -> jax.Array:
            found = norm_inputs(nnx.merge(graphdef, params), measure, **self.experiment.task.inputs(batch))
            return jnp.concatenate([x.reshape(-1, 2) for x in found.values()])

        seeds = self.experiment.config.train.seeds
        all_seeds = jax.vmap(look, (0, None), spmd_axis_name="replica") if seeds > 1 else look
        self._look = compiled_together(jax.jit(all_seeds))

    def signs(self, step: int, params: Params, loss: float | np.ndarray) -> list[str]:
        """A sentence for each sign of collapse, with its figure and, of a population, its seed; none of a sound run."""
        config = self.experiment.config
        seen = np.asarray(on_host(self._look(params, self.experiment.place(self.batch))))
        seen_NX2, losses_N = seen.reshape(-1, *seen.shape[-2:]), np.atleast_1d(loss)
        late = step >= 2 * config.optimizer.warmup_steps + 50
        worst = self.experiment.task.worst(self.experiment.model_config)
        found = []
        for number, (seen_X2, value) in enumerate(zip(seen_NX2, losses_N, strict=True)):
            who = f"seed {config.train.seed + number}: " if len(losses_N) > 1 else ""
            largest, spread = seen_X2[:, 0].max(), seen_X2[:, 1].min()
            if late and not value < worst:
                found.append(
                    f"{who}the validation loss {value:.4f} is not below {worst:.4f}, that of who knows nothing"
                )
            if not largest <= LARGEST:
                found.append(
                    f"{who}the residual stream reaches {largest:.1e}, and a sound one stays below {LARGEST:.0e}"
                )
            if not spread >= LEAST:
                found.append(f"{who}the input of a norm varies by {spread:.1e} of its size alone")
        if found:
            self.collapsed_at = step
        return found


def measure(x_BTD: jax.Array) -> jax.Array:
    """(2,): the largest entry, and the largest standard deviation of a token's entries as a part of its largest one."""
    x_BTD = x_BTD.astype(jnp.float32)
    largest_BT1 = jnp.max(jnp.abs(x_BTD), axis=-1, keepdims=True)
    # Divided first, so that no square overflows; a token of zeros does not vary.
    spread_BT = jnp.std(x_BTD / jnp.maximum(largest_BT1, jnp.finfo(jnp.float32).tiny), axis=-1)
    return jnp.stack([jnp.max(largest_BT1), jnp.max(spread_BT)])
