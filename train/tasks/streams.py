"""Next-token prediction whose state goes on from window to window: truncated backpropagation through time."""

import dataclasses
from typing import Any, ClassVar

import jax
from flax import nnx
from ml_collections import ConfigDict

from model.errors import Range, UserError, check_range
from train.data import Rows, Streams
from train.state import Params
from train.tasks.base import Batch, Carried, Sums
from train.tasks.language_model import LanguageModel, token_sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedText(LanguageModel):
    """To foretell the next token of text, from all of its document that stands before it in a stream of windows.

    Each row of a step goes on where that row of the step before ended, until its stream ends; gradients end with the
    window (Williams and Peng 1990, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
    Trajectories"). A stream is measured as one row.

    Raises:
        UserError: a number of windows out of its range.
    """

    HEAD: ClassVar[str] = "continued"

    windows: int = 8  # K, that follow one another: a model knows up to K T tokens, and learns from those of T

    def __post_init__(self) -> None:
        check_range("config.objective.windows", self.windows, Range(1, 2**16))

    def rows(self, data: Any) -> Rows:
        """Windows, each of which follows the one before in its stream.

        Raises:
            UserError: the train split holds less than a stream, which would be learned from beyond its end.
        """
        windows = data.windows("train")
        if windows.num_tokens < self.windows * windows.length:
            raise UserError(
                f"the train split holds {windows.num_tokens} tokens, fewer than one stream of "
                f"--config.objective.windows={self.windows} windows of --config.data.length={windows.length}: lower "
                "one of them, or add text."
            )
        return Streams(windows, self.windows, data.token_offsets("train")[:-1] - 1)

    def measured(self, data: Any, count: int = 0) -> Rows:
        """Whole streams: all (0) of the validation split, or `count` spread evenly over them."""
        return data.measured(count, self.windows)

    def measured_length(self, config: ConfigDict) -> int:
        """The tokens of a stream."""
        return super().measured_length(config) * self.windows

    def carried(self, graphdef: nnx.GraphDef, train: ConfigDict) -> Carried:
        """As `loss`, of rows that go on from a carry."""

        def loss(params: Params, batch: Batch, dropout_keys_B: jax.Array | None, carry: Any) -> tuple[Sums, Any]:
            model = nnx.merge(graphdef, params)
            x_BTD, carry = model.continued(**self.inputs(batch, dropout_keys_B), carry=carry)
            return token_sums(model, x_BTD, batch, train.label_smoothing, train.z_loss), carry

        return loss

    def empty_carry(self, model: Any, rows: int) -> Any:
        """The state of a model before its first token, (B, ...)."""
        return model.empty_carry(rows)
