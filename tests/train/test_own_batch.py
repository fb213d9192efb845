"""A batch of one's own, from a notebook: ids outside of the vocabulary are refused, or told by what is not finite."""

from typing import Any

import numpy as np
import pytest

from model.errors import UserError
from tests.small import VOCAB, random_batch, small_experiment
from train.loop import check_finite
from train.sharding import placed


def spoiled(name: str, value: int) -> dict[str, np.ndarray]:
    batch = random_batch(0, 24, 16)
    batch[name][5, 3], batch["weights"][5] = value, 1.0
    return batch


@pytest.mark.parametrize("changes", [{}, {"train.seeds": 2}, {"mesh.fsdp": 2, "mesh.tensor": 2}], ids=str)
def test_ids_outside_of_the_vocabulary_do_not_pass_for_others(changes: dict[str, Any]) -> None:
    """On one device, for a population of seeds, and on a mesh that splits the vocabulary."""
    experiment = small_experiment(**{"model.num_layers": 1, **changes})
    with placed(experiment.mesh, experiment.rules):
        params = experiment.make_state().params
        sums = lambda batch: experiment.sums(params, batch)[0]  # noqa: E731
        assert np.isfinite(sums(random_batch(0, 24, 16))).all()
        for name in ("tokens", "targets"):
            for value in (VOCAB, -1, -100):
                batch = spoiled(name, value)
                with pytest.raises(
                    UserError, match=rf"^{name}: {value} at \(5, 3\) .* outside of the vocabulary of 56"
                ):
                    experiment.place(batch)
                with pytest.raises(UserError, match="keep ids of your own batches within the vocabulary"):
                    check_finite(1, {"loss": np.asarray(sums(batch))})
                assert np.isnan(sums(batch)).all()
