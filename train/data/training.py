"""Training of byte-level BPE: once for each text, and never so long that it could not be interrupted."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tokenizers as hf

from train.data.files import make_once
from train.data.tokenizers import LONGEST, BytePairTokenizer, letters, load_tokenizer, parts
from train.run.files.json_files import dumps, loads

# The pieces inside which bytes may be joined: blank lines with the signs before them and the indentation after them;
# a word with the space or sign before it; up to three digits; signs; other spaces. Other patterns: see the README.
PATTERN = r"[^\s\p{L}\p{N}]*\s*\n[ \t]*|[^\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
TRAINING_BYTES = 2**28  # of the train split's beginning (TFDS shuffles at preparation); more text changes little


def cached_bpe(
    documents: Iterable[str],
    vocab_size: int,
    fingerprint: str,
    folder: Path,
    while_waiting: Callable[[], object] = lambda: None,
) -> BytePairTokenizer:
    """Returns the BPE of `documents`, whose `fingerprint` is known, trained once and kept in `folder`."""
    recipe = dumps([fingerprint, vocab_size, PATTERN, LONGEST, TRAINING_BYTES, hf.__version__])
    name = f"bpe-{vocab_size}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.json"
    path = make_once(folder / name, lambda path: train_bpe(documents, vocab_size, while_waiting).save(path), _is_whole)
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, BytePairTokenizer)
    return tokenizer


def _is_whole(path: Path) -> bool:
    try:
        return loads(path.read_bytes()).keys() == {"kind", "tokenizer"}
    except (ValueError, AttributeError):
        return False


def train_bpe(
    documents: Iterable[str], vocab_size: int, while_waiting: Callable[[], object] = lambda: None
) -> BytePairTokenizer:
    """Returns a BPE of at most `vocab_size` ids, `end` included; fewer where the text has no more pairs to join.

    A thread trains, because the library hears no signal until it is done; here Ctrl-C, and whatever `while_waiting`
    raises, ends it at once.
    """
    tokenizer = hf.Tokenizer(hf.models.BPE())
    split = hf.pre_tokenizers.Split(hf.Regex(PATTERN), "isolated")
    byte_level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Sequence([split, byte_level])
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=letters(), min_frequency=2, show_progress=False
    )
    given_up = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            tokenizer.train_from_iterator(_beginning(documents, given_up), trainer)
        except BaseException as error:  # noqa: BLE001  # raised again below, in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=work, name="bpe", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
            while_waiting()
    finally:
        given_up.set()
        thread.join(1)  # it ends at the next text; at the exit of Python it would abort the process
    if errors:
        raise errors[0]
    return BytePairTokenizer(tokenizer.to_str())


def _beginning(documents: Iterable[str], given_up: threading.Event) -> Iterator[str]:
    taken = 0
    for text in documents:
        for part in parts(text):
            if given_up.is_set():
                raise InterruptedError  # so that the thread ends, too
            yield part
        taken += len(text.encode())
        if taken >= TRAINING_BYTES:
            return
