"""A core with one learned number per head and a state: keys and values that fade with each step (Sun et al. 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention.contract import Core, HeadSizes, RecurrentCore, Refusals, Request, needs
from model.attention.masks.arrays import Segments
from model.attention.masks.band import causal
from model.attention.masks.base import conjuncts
from model.attention.scores import Scores, wide
from model.axes import pin
from model.parameters import parameter


def fresh(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Between 0.88 and 0.98 after a sigmoid."""
    return jax.random.uniform(key, shape, minval=2.0, maxval=4.0)


class Decay(RecurrentCore):
    """o_t = scale q_t S_t with S_t = decay S_(t-1) + k_t v_t^T, (K, K) for each head; each document begins with 0."""

    def __init__(self, sizes: HeadSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, rngs=rngs)
        self.decay = parameter(rngs, fresh, (sizes.H,), ("heads",))

    def __call__(self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
        """The recurrence from a state of zeros."""
        ids = [part.queries_BT for part in conjuncts(scores.mask) if isinstance(part, Segments)]
        first_BT = jnp.zeros(q_BTHK.shape[:2], bool)
        for ids_BT in ids:
            first_BT |= jnp.pad(ids_BT[:, 1:] != ids_BT[:, :-1], ((0, 0), (1, 0)))
        start_BHKK = self.empty(self.sizes, 1, len(q_BTHK))[0]
        return self._run(q_BTHK, k_BSGK, v_BSGK, scores, start_BHKK, first_BT, jnp.ones_like(first_BT))[0]

    @staticmethod
    def empty(sizes: HeadSizes, layers: int, rows: int) -> jax.Array:
        """Zeros (layers, B, H, K, K), whatever the dtype in float32."""
        return jnp.zeros((layers, rows, sizes.H, sizes.K, sizes.K))

    def decode(
        self, q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, scores: Scores, state: Any
    ) -> tuple[jax.Array, Any]:
        """The recurrence from a state."""
        positions_BT = scores.query_positions_BT
        assert positions_BT is not None
        return self._run(q_BTHK, k_BTGK, v_BTGK, scores, state, positions_BT == 0, positions_BT >= 0)

    def reference(self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
        """The same as one matrix of weights: scale q k^T decay^distance, where the mask allows."""
        T, q_BTHK, (k_BSHK, v_BSHK) = q_BTHK.shape[1], wide(q_BTHK), map(self._repeated, (k_BSGK, v_BSGK))
        distance_TT = jnp.maximum(jnp.arange(T)[:, None] - jnp.arange(T)[None], 0)
        powers_1HTT = self._factor_H()[None, :, None, None] ** distance_TT[None, None]
        weights_BHTS = scores.scale * jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK) * powers_1HTT
        weights_BHTS = jnp.where(scores.mask.block(0, 0, T, T), weights_BHTS, 0)
        return jnp.einsum("BHTS,BSHK->BTHK", weights_BHTS, v_BSHK).astype(v_BSGK.dtype)

    def _run(
        self,
        q_BTHK: jax.Array,
        k_BTGK: jax.Array,
        v_BTGK: jax.Array,
        scores: Scores,
        state_BHKK: jax.Array,
        first_BT: jax.Array,
        real_BT: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        def one(state: jax.Array, token: Any) -> tuple[jax.Array, jax.Array]:
            q_BHK, k_BHK, v_BHK, first_B, real_B = token
            before = jnp.where(first_B[:, None, None, None], 0, self._factor_H()[None, :, None, None] * state)
            after = before + k_BHK[..., :, None] * v_BHK[..., None, :]
            state = pin(jnp.where(real_B[:, None, None, None], after, state), "batch", "heads", None, None)
            return state, jnp.einsum("BHK,BHKV->BHV", scores.scale * q_BHK, state)

        tokens = wide(q_BTHK), self._repeated(k_BTGK), self._repeated(v_BTGK), first_BT, real_BT
        by_time = jax.tree.map(lambda x: x.swapaxes(0, 1), tokens)
        state_BHKK, o_TBHK = jax.lax.scan(one, state_BHKK, by_time)
        return o_TBHK.swapaxes(0, 1).astype(v_BTGK.dtype), state_BHKK

    def _repeated(self, x_BTGK: jax.Array) -> jax.Array:
        return jnp.repeat(wide(x_BTGK), self.sizes.H // self.sizes.G, axis=2)

    def _factor_H(self) -> jax.Array:
        return jax.nn.sigmoid(self.decay[...])


def refusals(request: Request) -> Refusals:
    """What it cannot do."""
    scores = request.scores
    known = all(part == causal() or isinstance(part, Segments) for part in conjuncts(scores.mask))
    yield from needs(known, "a state fades, and takes no other mask than causal", "write --config.model.mask=causal")
    yield from needs(
        scores.bias is None, "a state knows no distances to add a bias to", "write --config.model.bias=none"
    )
    yield from needs(not scores.soft_cap, "it has no scores to cap", "write --config.model.soft_cap=0")
    yield from needs(scores.sinks_H is None, "it has no sum that sinks would join", "write --config.model.sinks=false")
    yield from needs(scores.dropout is None, "it has no weights to drop", "write --config.model.dropout=0")
    yield from needs(request.T == request.S, "queries and keys are the same tokens", "give as many keys as queries")
    yield from needs(scores.query_positions_BT is None, "a state has one order", "decode with a cache")
    split = request.ways["length"] > 1
    yield from needs(not split, "a state runs along the whole sequence", "write --config.mesh.context=1")


CORE = Core(Decay, refusals, largest_score=None, reference=Decay.reference)
