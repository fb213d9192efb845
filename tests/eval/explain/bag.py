"""A classifier whose every number is known: the sum over tokens of what each says by itself."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.targets import Target
from model.parameters import Module
from model.taps import Taps

V, D = 19, 5


@dataclasses.dataclass(frozen=True)
class BagConfig:
    HEADS: ClassVar = ("class",)
    sites: ClassVar[dict[str, Any]] = {}
    vocab_size: int = V

    def build(self, rngs: nnx.Rngs) -> "Bag":
        return Bag(self, rngs)


class Bag(Module):
    def __init__(self, config: BagConfig, rngs: nnx.Rngs):
        self.config = config
        self.table = nnx.Param(jax.random.normal(rngs.params(), (V, D)))
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (D, 2)))

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        return self.table[...][tokens_BT]

    def vectors(self, tokens_BT: jax.Array, valid_BT: jax.Array | None = None, taps: Any = None) -> jax.Array:
        x_BTD = (taps or Taps())("embedding", self.embed(tokens_BT))
        return x_BTD if valid_BT is None else jnp.where(valid_BT[..., None], x_BTD, 0)

    def __call__(self, tokens_BT: jax.Array, valid_BT: jax.Array | None = None, taps: Any = None) -> jax.Array:
        return jnp.sum(self.vectors(tokens_BT, valid_BT, taps), axis=1) @ self.kernel[...]


def bag(examples: int = 24, T: int = 7) -> tuple[Bag, dict[str, jax.Array], Target]:
    """The model, rows of which each third has two tokens of padding, and the likelier class of each."""
    model, rng = BagConfig().build(nnx.Rngs(0)), np.random.default_rng(0)
    sizes = np.where(np.arange(examples) % 3 == 1, T - 2, T)
    inputs = {
        "tokens_BT": jnp.asarray(rng.integers(0, V, (examples, T))),
        "valid_BT": jnp.asarray(np.arange(T) < sizes[:, None]),
    }
    answers_BP = jnp.argmax(model(**inputs), axis=-1)[:, None]
    return model, inputs, Target(jnp.zeros_like(answers_BP), answers_BP)


def shares(model: Bag, inputs: dict[str, jax.Array], target: Target) -> np.ndarray:
    """How much each token adds to its class, (B, T)."""
    each_BT2 = model.embed(inputs["tokens_BT"]) @ model.kernel[...]
    each_BT = jnp.take_along_axis(each_BT2, target.answers_BP[..., None], axis=2)[..., 0]
    return np.asarray(jnp.where(inputs["valid_BT"], each_BT, 0))
