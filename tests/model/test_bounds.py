"""Token ids and positions outside of their tables: refused where they are known, NaN where they are not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import GPT, GPTConfig, UserError
from model.inspection import attention_weights

V, LENGTH, T = 7, 11, 5
SIZES: dict[str, Any] = {"vocab_size": V, "max_length": LENGTH, "num_layers": 1, "width": 12, "num_heads": 3}


def gpt(dtype: str = "float32", position: str = "learned") -> GPT:
    return GPT(GPTConfig(**SIZES, position=position, dtype=dtype), rngs=nnx.Rngs(0))


def changed(value: int, largest: int) -> np.ndarray:
    """Two rows of indices up to `largest`, with a strange one in the second."""
    index_BT = np.tile(np.arange(T) + largest - T + 1, (2, 1))
    index_BT[1, 3] = value
    return index_BT


@pytest.mark.parametrize("value", [V, 1000, -1, -V, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_known_token_outside_of_the_vocabulary_is_refused(value: int, kind: Any) -> None:
    model, tokens_BT = gpt(), kind(changed(value, V - 1).astype(np.int32))
    for call in (model, lambda given_BT: attention_weights(model, tokens_BT=given_BT)):
        with pytest.raises(
            UserError, match=rf"^token {value} at \(1, 3\) \(row, place\) is outside of the vocabulary of 7"
        ):
            call(tokens_BT)


@pytest.mark.parametrize("value", [LENGTH, 1000, -1])
def test_a_known_position_outside_of_its_table_or_cache_is_refused(value: int) -> None:
    tokens_BT, positions_BT = changed(0, V - 1), changed(value, LENGTH - 1)
    for position in ("learned", "learned(2)"):
        with pytest.raises(
            UserError, match=rf"^position {value} at \(1, 3\) \(row, place\) has none of the 11 learned"
        ):
            gpt(position=position)(tokens_BT, None, positions_BT)
    model = gpt(position="rope")
    assert np.isfinite(model(tokens_BT, None, changed(10**6, LENGTH - 1))).all()  # which has no table
    with pytest.raises(UserError, match=rf"^position {value} at \(1, 3\) \(row, place\) is outside of a cache for 11"):
        model.decode(tokens_BT, positions_BT, model.init_cache(2, LENGTH))


@pytest.mark.parametrize(
    ("dtype", "position"), [("float32", "learned(2)"), ("bfloat16", "learned"), ("float16", "learned")]
)
def test_unknown_ones_make_their_row_nan_and_no_other(dtype: str, position: str) -> None:
    """In training and in a cache; the same program gives the usual numbers for what lies within."""
    model = gpt(dtype, position)
    graphdef, params = nnx.split(model)

    @jax.jit
    def run(tokens_BT: jax.Array, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, params)
        cache = model.init_cache(2, LENGTH)
        return model(tokens_BT, None, positions_BT), model.decode(tokens_BT, positions_BT, cache)[0]

    tokens_BT, positions_BT = changed(0, V - 1), changed(4, LENGTH - 1)
    for logits_BTV in run(tokens_BT, positions_BT):
        assert np.isfinite(logits_BTV).all()
    np.testing.assert_allclose(run(tokens_BT, positions_BT)[0], model(tokens_BT, None, positions_BT), atol=0.02)
    for pair in (
        *((changed(value, V - 1), positions_BT) for value in (V, -1, 1000)),
        *((tokens_BT, changed(value, LENGTH - 1)) for value in (LENGTH, -1, 1000)),
    ):
        for logits_BTV in run(*pair):
            assert np.isnan(logits_BTV[1, 3]).all()
            assert np.isfinite(logits_BTV[0]).all()


@pytest.mark.parametrize("outside", [LENGTH, -1])
def test_a_position_outside_of_the_cache_makes_nan_where_there_is_no_table(outside: int) -> None:
    graphdef, params = nnx.split(gpt(position="rope"))

    @jax.jit
    def decode(tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, params)
        return model.decode(tokens_BT, positions_BT, model.init_cache(2, LENGTH))[0]

    logits_BTV = decode(changed(0, V - 1), changed(outside, LENGTH - 1))
    assert np.isnan(logits_BTV[1, 3]).all()
    assert np.isfinite(logits_BTV[0]).all()
