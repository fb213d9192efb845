"""Data: text found, tokenised once, cut into windows, and read as batches that depend on (seed, number) alone."""

from train.data.opening import Data, check_data, open_data
from train.data.pipeline import batches, eval_batches
from train.data.rows import Rows
from train.data.tokenizers import BytePairTokenizer, ByteTokenizer, Tokenizer, load_tokenizer, tokenizer_of
from train.data.windows import Streams, Windows

__all__ = [
    "BytePairTokenizer",
    "ByteTokenizer",
    "Data",
    "Rows",
    "Streams",
    "Tokenizer",
    "Windows",
    "batches",
    "check_data",
    "eval_batches",
    "load_tokenizer",
    "open_data",
    "tokenizer_of",
]
