"""Classes of texts of which it is known on which letters each label stands: what explanations are measured by."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from model.errors import UserError
from train.data import Tokenizer
from train.data.examples import Labelled
from train.data.examples.opened import ExampleData
from train.data.examples.rows import ExampleRows
from train.tasks.classification import Classification, LabelledRows


class RationaleRows(LabelledRows):
    """Labelled rows with `text` (B, T), where a letter of it stands, and `rationale`, where one of these counts."""

    def arrays(self, examples: Sequence[Labelled]) -> dict[str, np.ndarray]:
        """Returns the rows of these examples."""
        found = super().arrays(examples)
        text_BT = np.isin(found["tokens"], list(self._tokenizer.marks.values()), invert=True) & found["valid"]
        rationale_BT = np.zeros_like(text_BT)
        assert self._rationale is not None
        for row, one in enumerate(examples):
            places = 1 + np.array(self._rationale(one.text), int)  # behind the start
            rationale_BT[row, places[places < self.length]] = True
        return found | {"text": text_BT, "rationale": rationale_BT & text_BT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rationale(Classification):
    """To tell the class of a text; evaluation asks besides how well an explanation finds on what that stands."""

    ROWS: ClassVar[type[ExampleRows]] = RationaleRows

    explained_by: str = "integrated_gradients"  # how: flow, rollout, raw_weights, ... (eval/explain/planted.py)

    def open(self, config: ConfigDict, tokenizer: Tokenizer | None = None, **how: Any) -> ExampleData:
        """The labelled examples of a config.

        Raises:
            UserError: nobody knows on what their labels stand, or a token is not a letter.
        """
        if config.data.tokenizer != "bytes":
            raise UserError(
                f"--config.data.tokenizer={config.data.tokenizer} joins letters, each of which is to be told apart: "
                "give bytes."
            )
        data = super().open(config, tokenizer, **how)
        if data.corpus.rationale is None:
            given = f"path={config.data.path}" if config.data.path else f"name={config.data.name}"
            raise UserError(
                f"--config.data.{given}: nobody knows on what its labels stand; give --config.task=classification, or "
                "--config.data.name=rationales without a path."
            )
        return data
