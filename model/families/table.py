"""The kinds of models that a config can name; what trains, evaluates and shows them knows none of them by name.

A family is the dataclass of its keys, a `Family`: the meaning of a key stands in a trailing comment, its own or that of
the class it inherits from. A field `head` without a default is told what the task needs.
"""

from model.families.bert import BERTConfig
from model.families.encoder_decoder import EncoderDecoderConfig
from model.families.family import Family
from model.families.gpt import GPTConfig
from model.recurrent.encoder_decoder import RecurrentEncoderDecoderConfig
from model.recurrent.language_model import RecurrentConfig

FAMILIES: dict[str, type[Family]] = {
    "gpt": GPTConfig,
    "bert": BERTConfig,
    "encoder_decoder": EncoderDecoderConfig,
    "recurrent": RecurrentConfig,
    "recurrent_encoder_decoder": RecurrentEncoderDecoderConfig,
}
