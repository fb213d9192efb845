"""Marks that stand for what was taken out of a text, by T5's names: `<extra_id_0>`, `<extra_id_1>`, ..."""

import re
from collections.abc import Sequence

import numpy as np

from model.errors import UserError
from train.data.tokenizers import Tokenizer

_NAME = "extra_id_"
_TYPED = re.compile(rf"<({_NAME}\d+)>")


def names(count: int) -> tuple[str, ...]:
    """The names of so many, in the order of their ids, which fall: the first one has the last id (Raffel et al. 2020,
    the released vocabulary).
    """
    return tuple(f"{_NAME}{number}" for number in reversed(range(count)))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that someone types, in which `<extra_id_0>` stands for the mark, where the tokenizer has such.

    Raises:
        UserError: there is none of that number.
    """
    known = [name for name in tokenizer.marks if name.startswith(_NAME)]
    if not known:
        return tokenizer.encode(text)
    parts = _TYPED.split(text)  # texts and names in turn
    for name in parts[1::2]:
        if name not in known:
            raise UserError(f"<{name}> in the text is no mark of the tokenizer; take <{known[-1]}> to <{known[0]}>.")
    ids = tokenizer.encode_batch(parts[::2])
    marks: Sequence[list[int]] = [*([tokenizer.marks[name]] for name in parts[1::2]), []]
    return [id for some, mark in zip(ids, marks, strict=True) for id in [*np.asarray(some).tolist(), *mark]]


def shown(tokenizer: Tokenizer, id: int) -> bytes:
    """The bytes of an id, and of such a mark its name as it is typed."""
    numbers = {number: name for name, number in tokenizer.marks.items() if name.startswith(_NAME)}
    return f"<{numbers[id]}>".encode() if id in numbers else tokenizer.token_bytes(id)
