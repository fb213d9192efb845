"""A process of its own: compiles maps of a GPT for a TPU that is not here, with the real compiler, and prints what each
needs beyond the model's parameters and the inputs of its layers, in arrays of (B, n, n) float32.

Run as `python -m tests.eval.explain.tpu_memory rollout 2x2 6x2`: layers x heads.
"""

import os
import sys
from typing import Any

os.environ.update(
    JAX_PLATFORMS="cpu",
    # There is no TPU to ask about itself.
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    # Sooner, and temporaries stay in the main memory.
    JAX_EXEC_TIME_OPTIMIZATION_EFFORT="-1",
)

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies

from eval.explain.methods.attention_gradient import attention_gradient
from eval.explain.methods.rollout import rollout
from eval.explain.targets import Target
from launch.configs import load
from train.devices.mesh import make_mesh, make_rules
from train.experiment import make_model_config
from train.sharding import placed

V, K, n = 64, 128, 4096


def needed(method: str, layers: int, heads: int) -> float:
    """The peak less parameters and layer inputs, in arrays of (1, n, n) float32."""
    sizes = {"num_layers": layers, "num_heads": heads, "width": K, "head_width": K, "mlp_width": K}
    config = load("base", **{f"model.{key}": size for key, size in sizes.items()} | {"data.length": n})
    config.model.update(core="splash", remat="full", dtype="float32")
    graphdef, params = nnx.split(nnx.eval_shape(lambda: make_model_config(config, V).build(nnx.Rngs(0))))
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[:1]

    def call(params: Any, tokens_BT: jax.Array, target: Target) -> Any:
        model = nnx.merge(graphdef, params)
        if method == "rollout":
            return rollout(model, tokens_BT=tokens_BT)
        return attention_gradient(model, {"tokens_BT": tokens_BT}, target)

    with placed(make_mesh(dict.fromkeys(("replica", "fsdp", "tensor", "context"), 1), devices), make_rules(1)):
        where = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.sharding.PartitionSpec())
        one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        given = params, jax.ShapeDtypeStruct((1, n), jnp.int32), Target(one, one)
        there = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), given)
        memory = jax.jit(call).lower(*there).compile().memory_analysis()
    own = 4 * (sum(x.size for x in jax.tree.leaves(params)) + layers * n * K)
    return (memory.peak_memory_in_bytes - own) / (4 * n * n)


if __name__ == "__main__":
    for size in sys.argv[2:]:
        print(needed(sys.argv[1], *map(int, size.split("x"))), flush=True)
