"""The kinds of models that a config can name; what trains, evaluates and shows them knows none of them by name.

A family is the dataclass of its keys: a field with a default is a key of `config.model`, with its meaning in a trailing
comment, its own or that of the class it inherits from; `build(rngs)` makes its model, and HEADS are what it can have
for a task: a field `head` without a default is told which.
"""

from typing import Any

from model.bert import BERTConfig
from model.encoder_decoder import EncoderDecoderConfig
from model.gpt import GPTConfig
from model.trunk import Trunk, TrunkConfig
from model.writing import Writer

FAMILIES: dict[str, type[Any]] = {"gpt": GPTConfig, "bert": BERTConfig, "encoder_decoder": EncoderDecoderConfig}

# What all families have in common, for annotations; some of them write.
ModelConfig = TrunkConfig
Model = Trunk
__all__ = ["FAMILIES", "Model", "ModelConfig", "Writer"]
