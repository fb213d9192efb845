"""The next token, where evaluation asks what the heads of attention look at."""

import dataclasses

import numpy as np

from model.errors import UserError
from model.families.family import Family
from model.layers import choose
from train.tasks.language_model import LanguageModel

CONTROLS = {  # what is measured, in place of
    "none": "the heads as they are",
    "untrained": "those of the model with parameters drawn anew",
    "shuffled": "as they are, at places that are drawn by chance",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads(LanguageModel):
    """To foretell the next token; evaluation asks besides how far heads look at the token before, and at what came
    after an equal one.
    """

    control: str = "none"  # what is measured: none (the heads as they are), untrained (drawn anew) or shuffled (places)

    def __post_init__(self) -> None:
        choose(CONTROLS, self.control, "objective.control")

    def check(self, batch: dict[str, np.ndarray], model: Family) -> None:
        """Refuses a batch of this process.

        Raises:
            UserError: as all tasks do, and a model without attention.
        """
        if not model.sites:
            raise UserError("--config.task=heads is of heads of attention, and this family has none: take another.")
        super().check(batch, model)
