"""Examples as a data set of a run: a corpus by its name in a config, and a tokenizer of its texts."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from model.errors import UserError
from train.data.examples.embedded import EMBEDDED, embedded
from train.data.examples.own import own_examples
from train.data.examples.public import public_examples
from train.data.examples.types import KINDS, Corpus, asked
from train.data.files import make_folder
from train.data.opening import check_data, data_folder
from train.data.overlap import Overlap
from train.data.tokenizers import ByteTokenizer, Tokenizer
from train.data.training import cached_bpe
from train.run.files.disk import remove_empty


class ExampleData:
    """A corpus with its tokenizer: what `train.data.Data` is for text.

    Attributes:
        corpus: the examples.
        tokenizer: text to ids and back, with the marks of the task.
        fingerprint: a hash of both splits and of the tokenizer.
        overlap: what of validation is learned from too.
        names: of labels or tags, in the order of their ids.
        length: T, the tokens of a row.
    """

    def __init__(self, corpus: Corpus[Any], tokenizer: Tokenizer, length: int) -> None:
        self.corpus, self.tokenizer, self.names, self.length = corpus, tokenizer, corpus.names, length
        self.fingerprint = hashlib.sha256((corpus.fingerprint + tokenizer.fingerprint).encode()).hexdigest()

    @functools.cached_property
    def overlap(self) -> Overlap:
        """What the two splits share."""
        return self.corpus.overlap()

    def described(self) -> dict[str, Any]:
        """Returns what a passport says of it."""
        told = {"names": list(self.names), "left_out": dict(self.corpus.counted)}
        return {"fingerprint": self.fingerprint, **self.overlap.described(), **told}


def open_examples(
    kind: type,
    config: ConfigDict,
    tokenizer: Tokenizer | None = None,
    *,
    marks: Sequence[str] = (),
    allow_overlap: bool = False,
    while_waiting: Callable[[], object] = lambda: None,
) -> ExampleData:
    """Returns the examples of this kind that `config.data` names, and their tokenizer; see `train.data.open_data`.

    Raises:
        UserError: a value cannot be used, the examples cannot be had or are of another kind, or validation is learned
            from and may not be.
    """
    check_data(config)
    folder = data_folder(config.dir)
    cache = folder / "heed"
    made = make_folder(folder)
    made = make_folder(cache) + made
    try:
        corpus = _corpus(kind, config)
        corpus.overlap().check(allow_overlap)
    except UserError:
        remove_empty(made)
        raise
    if tokenizer is None:
        tokenizer = ByteTokenizer()
        if config.tokenizer == "bpe":
            texts = (text for one in corpus.splits["train"] for text in asked(one) if text)
            tokenizer = cached_bpe(texts, config.vocab_size, corpus.fingerprint, cache, while_waiting)
        tokenizer = tokenizer.with_marks(marks)
    return ExampleData(corpus, tokenizer, config.length)


def _corpus(kind: type, config: ConfigDict) -> Corpus[Any]:
    folder = data_folder(config.dir)
    if config.path:
        return own_examples(kind, config.path, apart=folder / "heed")
    if config.name in EMBEDDED or config.name == "python_stdlib":
        fit = [name for name, one in EMBEDDED.items() if one.kind is kind]
        if config.name not in fit:
            wanted = KINDS[kind]
            raise UserError(
                f"--config.data.name={config.name!r} holds no {wanted}, from which the task learns; take"
                f" {', '.join(fit)}, a TFDS set, or files of your own (--config.data.path)."
            )
        return embedded(config.name, folder / "heed")
    splits = {"train": config.train_split, "validation": config.validation_split}
    return public_examples(kind, config.name, folder, splits)
