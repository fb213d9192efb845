"""Which seed fixes what: first parameters and dropout, together or apart."""

from typing import Any

import jax
import numpy as np
import pytest

from tests.small import small_experiment
from train.sharding import placed
from train.state import State, seed_pairs


def first_state(**changes: Any) -> State:
    experiment = small_experiment(**{"model.num_layers": 1, "model.dropout": 0.1, "train.seed": 5, **changes})
    with placed(experiment.mesh, experiment.rules):
        return jax.device_get(experiment.make_state())


def keys(state: State) -> Any:
    return np.asarray(jax.random.key_data(state.rng))


def test_a_seed_fixes_both_unless_dropout_has_its_own() -> None:
    assert seed_pairs(5, 3, -1).tolist() == [[5, 5], [6, 6], [7, 7]]
    assert seed_pairs(5, 3, 2**32 - 1).tolist() == [[5, 2**32 - 1], [6, 2**32 - 1], [7, 2**32 - 1]]
    own, other = first_state(), first_state(**{"train.dropout_seed": 9})
    np.testing.assert_array_equal(keys(own), np.asarray(jax.random.key_data(jax.random.key(5))))
    np.testing.assert_array_equal(keys(other), np.asarray(jax.random.key_data(jax.random.key(9))))
    jax.tree.map(np.testing.assert_array_equal, own.params, other.params)


@pytest.mark.parametrize(("dropout_seed", "draws"), [(-1, [5, 6]), (9, [9, 9])])
def test_seeds_of_a_population_drop_alike_only_where_they_are_told_to(dropout_seed: int, draws: list[int]) -> None:
    both = first_state(**{"train.seeds": 2, "train.dropout_seed": dropout_seed})
    np.testing.assert_array_equal(keys(both), [np.asarray(jax.random.key_data(jax.random.key(one))) for one in draws])
    for number in range(2):
        alone = first_state(**{"train.seed": 5 + number})
        jax.tree.map(lambda x, y, i=number: np.testing.assert_array_equal(x[i], y), both.params, alone.params)
