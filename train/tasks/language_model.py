"""Next-token prediction: the task of a causal language model."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from model.bounds import without_padding
from model.vocabulary import token_scores
from train.state import Params
from train.tasks.base import Batch, Inputs, Loss, Sums, Task
from train.tasks.by_quarter import by_quarter


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel(Task):
    """To foretell the next token of text, from what stands before it in its document."""

    HEAD: ClassVar[str] = "next_token"

    def loss(self, graphdef: nnx.GraphDef, train: ConfigDict) -> Loss:
        """As `language_model`."""
        return language_model(graphdef, label_smoothing=train.label_smoothing, z_loss=train.z_loss)

    def sums(self, graphdef: nnx.GraphDef) -> Callable[[Params, Batch], tuple[jax.Array, jax.Array]]:
        """(summed negative log-likelihood in nats, number of targets) by quarters of the window, (4,) each."""
        loss = language_model(graphdef)
        return by_quarter(lambda params, batch: loss(params, batch, None)["nll"])


def language_model(
    graphdef: nnx.GraphDef, *, label_smoothing: float = 0.0, z_loss: float = 0.0, inputs: Inputs = Task.inputs
) -> Loss:
    """The loss of next-token prediction: `loss(params, batch, dropout_keys_B)`, of a model that takes `inputs`.

    The batch has tokens, targets, segment_ids, positions (int32) and weights (float32), all (B, T), and may have valid
    (B, T), whose False and 0 are padding: nothing sees it and it has no weight, whatever stands there. Of the sums,
    `loss` is what is minimised (nats; with smoothing, the target is mixed with the uniform distribution, Szegedy et
    al. 2016, section 7; z_loss adds z_loss * log(Z)^2, Chowdhery et al. 2022, section 5) and `nll` the plain negative
    log-likelihood; both are per token.
    """

    def loss(params: Params, batch: Batch, dropout_keys_B: jax.Array | None) -> Sums:
        model = nnx.merge(graphdef, params)
        x_BTD = model.vectors(**inputs(batch, dropout_keys_B))
        return token_sums(model, x_BTD, batch, label_smoothing, z_loss)

    return loss


def token_sums(model: Any, x_BTD: jax.Array, batch: Batch, label_smoothing: float, z_loss: float) -> Sums:
    """The sums of `language_model`, which see there, from the vectors of a batch."""
    valid_BT = batch.get("valid")
    targets_BT, weights_BT = (without_padding(batch[name], valid_BT) for name in ("targets", "weights"))
    log_z_BT, target_BT, mean_BT, _ = token_scores(x_BTD, model.readout(), targets_BT)
    objective_BT = nll_BT = log_z_BT - target_BT
    if label_smoothing:  # decided when the step is built: XLA does not remove a multiplication by 0
        objective_BT = (1 - label_smoothing) * nll_BT + label_smoothing * (log_z_BT - mean_BT)
    if z_loss:
        objective_BT += z_loss * log_z_BT**2
    count = jnp.sum(weights_BT)
    return {"loss": (jnp.sum(objective_BT * weights_BT), count), "nll": (jnp.sum(nll_BT * weights_BT), count)}
