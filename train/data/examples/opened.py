"""Examples as a data set of a run: a corpus by its name in a config, and a tokenizer of its texts."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from train.data.examples.opening import open_corpus
from train.data.examples.types import Corpus, texts_of
from train.data.opening import check_data, data_folder
from train.data.tokenizers import ByteTokenizer, Tokenizer
from train.data.training import cached_bpe


class ExampleData:
    """A corpus with its tokenizer: what `train.data.Data` is for text.

    Attributes:
        corpus: the examples.
        tokenizer: text to ids and back, with the marks of the task.
        fingerprint: a hash of both splits and of the tokenizer.
        names: of labels or tags, in the order of their ids.
        length: T, the tokens of a row.
    """

    def __init__(self, corpus: Corpus[Any], tokenizer: Tokenizer, length: int) -> None:
        self.corpus, self.tokenizer, self.names, self.length = corpus, tokenizer, corpus.names, length
        self.fingerprint = hashlib.sha256((corpus.fingerprint + tokenizer.fingerprint).encode()).hexdigest()

    def described(self) -> dict[str, Any]:
        """Returns what a passport says of it."""
        return {**self.corpus.described(), "fingerprint": self.fingerprint, "names": list(self.names)}


def open_examples(
    kind: type,
    config: ConfigDict,
    tokenizer: Tokenizer | None = None,
    *,
    marks: Sequence[str] = (),
    form: str = "one",
    spelled: Callable[[Any], Iterable[str]] = texts_of,
    allow_overlap: bool = False,
    while_waiting: Callable[[], object] = lambda: None,
) -> ExampleData:
    """Returns the examples of this kind that `config.data` names, and their tokenizer; see `train.data.open_data`.

    `spelled` gives the texts of an example that a tokenizer is trained on.

    Raises:
        UserError: a value cannot be used, the examples cannot be had or are of another kind, or validation is learned
            from and may not be.
    """
    check_data(config)
    corpus = open_corpus(kind, config, form=form, allow_overlap=allow_overlap, while_waiting=while_waiting)
    if tokenizer is None:
        tokenizer = ByteTokenizer()
        if config.tokenizer == "bpe":
            texts = (text for one in corpus.splits["train"] for text in spelled(one) if text)
            cache = data_folder(config.dir) / "heed"
            tokenizer = cached_bpe(
                texts, config.vocab_size, spelled.__name__ + corpus.fingerprint, cache, while_waiting
            )
        tokenizer = tokenizer.with_marks(marks)
    return ExampleData(corpus, tokenizer, config.length)
