"""A CPU's programs are compiled at LLVM's first level of optimization, which must change no number."""

import jax
import numpy as np
import pytest

from tests.small import abstract_batch, random_batches, small_experiment
from train.devices.machine import compiler_options
from train.sharding import placed


@pytest.mark.rest
def test_the_first_level_ends_in_the_bits_of_the_third() -> None:
    experiment, ends = small_experiment(), []
    assert list(compiler_options("cpu").values()) == [1]
    for level in (1, 3):
        with placed(experiment.mesh, experiment.rules):
            lowered = experiment.step.lower(experiment.abstract, abstract_batch(experiment))
            step, state = lowered.compile({"xla_backend_optimization_level": level}), experiment.make_state()
            for batch in random_batches(experiment, 3):
                state, _ = step(state, batch)
            ends.append(jax.device_get(state.params))
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_other_platforms_are_left_as_they_are() -> None:
    assert compiler_options("tpu") == compiler_options("gpu") == {}
