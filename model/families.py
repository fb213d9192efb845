"""The kinds of models that a config can name; what trains, evaluates and shows them knows none of them by name.

A family is the dataclass of its keys: a field with a default is a key of `config.model`, with its meaning in a trailing
comment; `build(rngs)` makes its model.
"""

from typing import Any

from model.encoder_decoder import EncoderDecoderConfig
from model.gpt import GPT, GPTConfig

FAMILIES: dict[str, type[Any]] = {"gpt": GPTConfig, "encoder_decoder": EncoderDecoderConfig}

# What all families have in common, for annotations.
ModelConfig = GPTConfig
Model = GPT
