"""The contract of a task: of which rows a model learns, and a loss of sums and counts, which add over micro-batches,
devices and hosts.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from model.bounds import check_within
from model.families.family import Family
from train.data import Rows, Tokenizer, open_data
from train.state import Params

Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]
Loss = Callable[[Params, Batch, jax.Array | None], Sums]
Carried = Callable[[Params, Batch, jax.Array | None, Any], tuple[Sums, Any]]
Inputs = Callable[[Batch, jax.Array | None], dict[str, Any]]
TEXT = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), "BT int32") | {"weights": "BT float32"}
MARKED = dict.fromkeys(("tokens", "types", "segment_ids", "positions"), "BT int32") | {"valid": "BT bool"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned, one file each: a field with a default is a key of `config.objective`, its comment the meaning.

    HEAD is what a model must have to learn it, MARKS are tokens that stand for no text, LOOKS_AHEAD says whether
    attention may see what follows, and WRITES whether `sums` takes a beam, as what a model writes by itself is scored.
    ARRAYS are what a batch holds, by name: axes (B rows, T places, of pairs those of their second halves, S of their
    first ones, C labels) and type.
    """

    HEAD: ClassVar[str]
    ARRAYS: ClassVar[dict[str, str]] = TEXT
    MARKS: ClassVar[tuple[str, ...]] = ()
    LOOKS_AHEAD: ClassVar[bool] = False
    WRITES: ClassVar[bool] = False

    def marks(self, length: int) -> tuple[str, ...]:
        """The tokens that stand for no text, for rows of this length."""
        return self.MARKS

    def target_length(self, length: int) -> int:
        """The length of what a model of pairs writes, where its sources have this one."""
        return length

    def vocab_size(self, config: ConfigDict) -> int:
        """The tokens that the config asks for; short text may make fewer."""
        text = 256 if config.data.tokenizer == "bytes" else config.data.vocab_size
        return text + len(self.marks(config.data.length))

    def open(self, config: ConfigDict, tokenizer: Tokenizer | None = None, **how: Any) -> Any:
        """The data set of a config, as `train.data.open_data` opens it."""
        return open_data(config.data, tokenizer, marks=self.marks(config.data.length), **how)

    def rows(self, data: Any) -> Rows:
        """What is learned from."""
        return data.windows("train")

    def measured(self, data: Any, count: int = 0) -> Rows:
        """What is evaluated: all (0) rows of the validation split, or `count` spread evenly over them."""
        return data.measured(count)

    def measured_length(self, config: ConfigDict) -> int:
        """The tokens of a row of these."""
        return int(config.data.length)

    def reported(self, data: Any) -> dict[str, Rows]:
        """What is scored besides, once a run is evaluated, and counts for nothing: rows by the name of their split."""
        return {}

    @staticmethod
    def inputs(batch: Batch, dropout_keys_B: jax.Array | None = None) -> dict[str, Any]:
        """What the model takes of a batch, by the names of its arguments; `dropout_keys_B` turn dropout on."""
        return {
            "tokens_BT": batch["tokens"],
            "segment_ids_BT": batch["segment_ids"],
            "positions_BT": batch["positions"],
            "dropout_keys_B": dropout_keys_B,
            "valid_BT": batch.get("valid"),
        }

    def check(self, batch: dict[str, np.ndarray], model: Family) -> None:
        """Refuses a batch of this process.

        Raises:
            UserError: a token or a target outside of the vocabulary, but for padding.
        """
        rule = f"is outside of the vocabulary of {model.vocab_size}; encode with its tokenizer"
        for name in ("tokens", "targets"):
            check_within(batch[name], model.vocab_size, f"{name}:", rule, batch.get("valid"))

    def worst(self, model: Family) -> float:
        """The loss of one who knows nothing, in nats: a run that stays above it has collapsed."""
        return math.log(model.vocab_size)

    def loss(self, graphdef: nnx.GraphDef, train: ConfigDict) -> Loss:
        """`loss(params, batch, dropout_keys_B)`: sums and counts, of which `loss` is minimised."""
        raise NotImplementedError

    def carried(self, graphdef: nnx.GraphDef, train: ConfigDict) -> Carried:
        """The loss as a step takes it, `loss(params, batch, dropout_keys_B, carry) -> (sums, carry)`: a row may go on
        from that of the step before.
        """
        return apart(self.loss(graphdef, train))

    def empty_carry(self, model: Any, rows: int) -> Any:
        """What the rows of the first batch go on from, arrays (B, ...): nothing, where no row goes on."""
        return ()

    def sums(self, graphdef: nnx.GraphDef) -> Callable[[Params, Batch], Any]:
        """`sums(params, batch)`: what an evaluation adds up, without dropout."""
        raise NotImplementedError


def apart(loss: Loss) -> Carried:
    """The same loss, of rows that know nothing of those before."""
    return lambda params, batch, dropout_keys_B, carry: (loss(params, batch, dropout_keys_B), carry)
