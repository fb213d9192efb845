"""A process of its own: compiles attention cores with the real TPU compiler, and prints what it found as JSON.

    python -m tests.model.attention.tpu_attention cases
    python -m tests.model.attention.tpu_attention step
    python -m tests.model.attention.tpu_attention memory splash 4096 8192

compile splash for every kind of mask and on every chip, a training step with it, and a core of the table for these
lengths on a v5e.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.update(
    JAX_PLATFORMS="cpu",
    # There is no TPU to ask about itself.
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    # Two tests may compile at once.
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    # Sooner, and temporaries stay in the main memory. With all effort, up to 128 MB of them move to the vector memory,
    # which the peak counts as well: a constant that hides how memory grows with the length.
    JAX_EXEC_TIME_OPTIMIZATION_EFFORT="-1",
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.attention import Scores, padding, parse_mask, segments, select_core
from model.attention.biases.distance import Alibi
from model.attention.contract import Request
from model.attention.cores.splash import SIZES, make_kernel
from model.attention.cores.splash_mask import computed_blocks
from tests.small import VOCAB, abstract_batch, small_config
from train.experiment import make_experiment
from train.sharding import placed

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


class Case(NamedTuple):
    """What is compiled: a mask of 4,096 places on a chip, with a head width and other choices."""

    chip: str
    K: int
    mask: str
    choices: frozenset[str] = frozenset()


# Every chip with every head width, every kind of mask, and every choice that the kernel takes at least once.
CASES = [
    Case("v5e", 64, "causal", frozenset({"segments", "alibi"})),
    Case("v5e", 128, "full", frozenset({"segments", "padding", "grouped", "sinks"})),
    Case("v5e", 256, "global_tokens(2) | window(96) | random_blocks(64, 3, 4096)"),
    Case("v5p", 64, "window(128)", frozenset({"float32"})),
    Case("v5p", 128, "strided(128)", frozenset({"soft cap", "odd"})),
    Case("v5p", 256, "causal | prefix(100)", frozenset({"float32", "segments"})),
    Case("v6e", 64, "causal & (window(256, 0) | sink_columns(4))", frozenset({"sinks"})),
    Case("v6e", 128, "window(256) | global_tokens(1)", frozenset({"padding"})),
    Case("v6e", 256, "fixed(128, 8)", frozenset({"float32", "segments", "grouped"})),
    Case("tpu7x", 64, "chunked(256)", frozenset({"segments", "odd"})),
    Case("tpu7x", 128, "causal & window(512, 0) & dilated(4)", frozenset({"segments", "alibi"})),
    Case("tpu7x", 256, "causal", frozenset({"soft cap", "segments"})),
    Case("v5e", 96, "causal", frozenset({"segments", "float32", "odd"})),
    Case("v5p", 192, "causal", frozenset({"one key head"})),
    Case("v6e", 16, "causal", frozenset({"segments", "grouped"})),
]


def mesh_of(chip: str) -> Mesh:
    """A mesh of one chip of that generation."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip]).devices
    return Mesh(np.array(devices[:1]), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))


def compile_core(core: str, mesh: Mesh, sizes: tuple[int, ...], scores: Any, dtype: Any = jnp.bfloat16) -> Any:
    """The gradients of a core for q, k, v and the arrays in `scores`, compiled; sizes are (B, T, H, G, K)."""
    B, T, H, G, K = sizes

    def run(q: Any, k: Any, v: Any, do: Any, scores: Any) -> Any:
        call = select_core(core, Request.of(q, k, v, scores)).call

        def output(q: Any, k: Any, v: Any, sinks_H: Any) -> Any:
            return call(q, k, v, scores.replace(sinks_H=sinks_H))

        return jax.vjp(output, q, k, v, scores.sinks_H)[1](do)

    with jax.sharding.set_mesh(mesh):
        here = NamedSharding(mesh, PartitionSpec())
        shapes = [jax.ShapeDtypeStruct((B, T, heads, K), dtype, sharding=here) for heads in (H, G, G, H)]
        arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), scores)
        return jax.jit(run).lower(*shapes, arrays).compile()


def compile_case(case: Case) -> dict[str, Any]:
    """What the compiler and the kernel's plan say: bytes, the grid's width, and the share of blocks that is skipped."""
    start, choices, mask = time.time(), case.choices, parse_mask(case.mask)
    B, T, H = 2, 4001 if "odd" in choices else 4096, 4
    G = 1 if "one key head" in choices else 2 if "grouped" in choices else H
    ids_BT = np.zeros((B, T), np.int32)
    whole = mask & segments(ids_BT) if "segments" in choices else mask
    scores = Scores(
        whole & padding(ids_BT == 0) if "padding" in choices else whole,
        case.K**-0.5,
        bias=Alibi(np.ones(H, np.float32)) if "alibi" in choices else None,
        soft_cap=30.0 if "soft cap" in choices else 0.0,
        sinks_H=np.zeros(H, np.float32) if "sinks" in choices else None,
    )
    mesh = mesh_of(case.chip)
    kind = mesh.devices.flat[0].device_kind
    dtype = jnp.float32 if "float32" in choices else jnp.bfloat16
    compiled = compile_core("splash", mesh, (B, T, H, G, case.K), scores, dtype)
    kernel, shape = make_kernel(mask, T, T, SIZES[kind], case.K)
    rows, columns = kernel.kwargs["block_sizes"].block_q, kernel.kwargs["block_sizes"].block_kv
    blocks, computed = shape[0] // rows * (shape[1] // columns), len(list(computed_blocks(kernel.fwd_mask_info)))
    return {
        "case": [case.chip, case.K, case.mask, *sorted(choices)],
        "kind": kind,
        "kernels": sorted({name for name in ("fwd", "dq", "dkv") if f"%splash_mha_{name}" in compiled.as_text()}),
        "peak": compiled.memory_analysis().peak_memory_in_bytes,
        "blocks": [rows, columns],
        "width": [kernel.fwd_mask_info.block_mask.shape[-1], shape[1] // columns],
        "skipped": round(1 - computed / blocks, 3),
        "loops": compiled.as_text().count(" while("),
        "seconds": round(time.time() - start, 1),
    }


def step() -> dict[str, int]:
    """Kernels in the training step of two seeds, each on two devices of a v5e 2x2, whose layers are computed again."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    changes = {"model.core": "splash", "model.dtype": "bfloat16", "model.remat": "full", "model.num_kv_heads": 2}
    changes |= {"train.seeds": 2, "mesh.replica": 2, "mesh.tensor": 2, "data.length": 256}
    experiment = make_experiment(small_config(**changes), VOCAB, devices)
    with placed(experiment.mesh, experiment.rules):
        text = experiment.step.lower(experiment.abstract, abstract_batch(experiment)).compile().as_text()
    return {name: len(re.findall(rf"%splash_mha_{name}\S* = ", text)) for name in ("fwd", "dq", "dkv")}


def memory(core: str, lengths: list[int]) -> dict[str, int]:
    """Peak bytes of a core's gradients on a v5e, by length: one row, 8 heads of width 128, bfloat16, causal."""
    mesh, scores = mesh_of("v5e"), Scores(parse_mask("causal"), 128**-0.5)
    return {
        str(T): compile_core(core, mesh, (1, T, 8, 8, 128), scores).memory_analysis().peak_memory_in_bytes
        for T in lengths
    }


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    commands: dict[str, Callable[..., Any]] = {
        "cases": lambda: [compile_case(case) for case in CASES],
        "step": step,
        "memory": lambda core, *lengths: memory(core, [int(length) for length in lengths]),
    }
    print(json.dumps(commands[what](*rest)))
