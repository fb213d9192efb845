"""What tasks share that read one text and write another: sources and targets as rows, and the loss of the targets."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from model.bounds import check_within
from model.families.encoder_decoder import Pairs
from train.data import Tokenizer
from train.tasks.base import TEXT, Batch, Loss, Task
from train.tasks.language_model import language_model

Encoded = tuple[np.ndarray, np.ndarray]  # the tokens of a source and of its target


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfPairs(Task):
    """To write the second half of a pair, having read the first."""

    HEAD: ClassVar[str] = "target"
    ARRAYS: ClassVar[dict[str, str]] = TEXT | dict.fromkeys(
        ("sources", "source_segment_ids", "source_positions"), "BS int32"
    )

    @staticmethod
    def inputs(batch: Batch, dropout_keys_B: jax.Array | None = None) -> dict[str, Any]:
        """What the model takes of a batch, by the names of its arguments; `dropout_keys_B` turn dropout on."""
        return {"pairs": Pairs.of(batch, dropout_keys_B)}

    def check(self, batch: dict[str, np.ndarray], model: Any) -> None:
        """Refuses a batch of this process.

        Raises:
            UserError: a token of either side outside of the vocabulary.
        """
        rule = f"is outside of the vocabulary of {model.vocab_size}; encode with its tokenizer"
        for name in ("sources", "tokens", "targets"):
            check_within(batch[name], model.vocab_size, f"{name}:", rule)

    def loss(self, graphdef: nnx.GraphDef, train: ConfigDict) -> Loss:
        """That of a language model, of the second text by the tokens before and by the first text."""
        return language_model(graphdef, label_smoothing=train.label_smoothing, z_loss=train.z_loss, inputs=self.inputs)


def laid(pairs: Sequence[Sequence[Encoded]], S: int, T: int, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Returns rows of pairs, one after the other: `source end` in arrays (B, S); `start target`, with `target end` as
    `targets`, in arrays (B, T). Segment n is the n-th pair of its row; `weights` are 1 at what is to be written.

    What is too long is cut, a target at its end.
    """
    sizes = dict.fromkeys(("sources", "source_segment_ids", "source_positions"), S)
    sizes |= dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), T)
    found = {name: np.zeros((len(pairs), size), np.int32) for name, size in sizes.items()}
    found["weights"] = np.zeros((len(pairs), T), np.float32)
    start, end = tokenizer.marks["start"], tokenizer.end
    for row, some in enumerate(pairs):
        i = j = 0
        for number, (source, target) in enumerate(some, 1):
            sources, written = [*source[: S - 1], end], [*target, end][:T]
            there, here = slice(i, i + len(sources)), slice(j, j + len(written))
            found["sources"][row, there], found["source_segment_ids"][row, there] = sources, number
            found["source_positions"][row, there] = np.arange(len(sources))
            found["tokens"][row, here], found["targets"][row, here] = [start, *written[:-1]], written
            found["segment_ids"][row, here], found["weights"][row, here] = number, 1
            found["positions"][row, here] = np.arange(len(written))
            i, j = there.stop, here.stop
    return found
