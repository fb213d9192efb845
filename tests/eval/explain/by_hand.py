"""A classifier whose weights are written by hand: it counts the letters of each group, and needs all three."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx

from launch.configs import load
from train.data import ByteTokenizer
from train.data.examples.opened import ExampleData
from train.data.examples.rationales import GROUPS, NONE, rationale, rationales
from train.data.examples.types import Corpus
from train.experiment import make_model_config
from train.tasks.rationale import RationaleRows

T, SMALL = 22, 0.01  # with vectors so small a norm with an epsilon of 1 leaves them as they are, but for 1e-4


@functools.cache
def planted_rows(count: int = 32) -> Any:
    """Rows of the first texts of the corpus."""
    corpus: Corpus[Any] = Corpus(rationales(train=4, held_out=count).splits, "f", (*GROUPS, NONE), rationale=rationale)
    return RationaleRows(ExampleData(corpus, ByteTokenizer(["start", "separator"]), T), "validation")


@functools.cache
def counting() -> Any:
    """The first place looks at all alike, and adds up what stands for a group: its class is told from 2.5 letters on,
    below that it is none.
    """
    keys = {"model.num_layers": 1, "model.width": 4, "model.num_heads": 1, "model.norm": "rms(1.0)"}
    keys |= {"model.position": "none", "model.edits": "none", "model.use_bias": "mlp & head", "model.mlp_width": 4}
    model = make_model_config(load("bert:rationale", **keys), 258, 4).build(nnx.Rngs(0))
    attention, eye = model.stack.blocks.attention, jnp.eye(4)
    for part in (attention.query, attention.key, model.stack.blocks.mlp.down):
        part.kernel[...] = jnp.zeros_like(part.kernel[...])
    model.embed.embedding[...] = jnp.zeros((258, 4))
    for number, group in enumerate(GROUPS):
        model.embed.embedding[...] = model.embed.embedding[...].at[[*group.encode()], number].set(SMALL)
    attention.value.kernel[...] = eye.reshape(attention.value.kernel[...].shape)
    attention.output.kernel[...] = eye.reshape(attention.output.kernel[...].shape)
    model.pooler.kernel[...], model.pooler.bias[...] = 2 * T / SMALL * eye, jnp.full(4, -2 * 2.5)
    model.answer.kernel[...], model.answer.bias[...] = 4 * eye.at[3, 3].set(0), jnp.zeros(4)
    return model
