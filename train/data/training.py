"""Training of byte-level BPE: once for each text, and never so long that it could not be interrupted."""

import contextlib
import hashlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tokenizers as hf

from model.errors import UserError
from train.data import bpe
from train.data.files import make_once
from train.data.tokenizers import LONGEST, BytePairTokenizer, letters, load_tokenizer, parts, utf8
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

    A process trains, because the library hears no signal until it is done, and a thread of it would abort Python
    at its exit; here Ctrl-C, and whatever `while_waiting` raises, ends it at once.

    Raises:
        UserError: a text holds a lone surrogate; or the process was ended from outside, or had no memory.
    """
    recipe = {"pattern": PATTERN, "vocab_size": vocab_size - 1, "alphabet": letters()}
    with tempfile.TemporaryFile() as out:
        command = [sys.executable, "-P", bpe.__file__]  # -P: the file tokenizers.py beside it is not the library
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out)
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # how it ended is asked when it has
                for line in itertools.chain([recipe], _beginning(documents)):
                    process.stdin.write(dumps(line).encode() + b"\n")
                    while_waiting()
                process.stdin.close()
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                while_waiting()
            while_waiting()  # where a signal to both has ended that one before it could ignore it
        finally:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):  # last, because it waits for room in the pipe
                process.stdin.close()
        if process.returncode:
            raise UserError(
                f"the process that trained the tokenizer ended with status {process.returncode}: see above if it says "
                "why, free memory if it says nothing, or train on less text (--config.data.path)."
            )
        out.seek(0)
        return BytePairTokenizer(out.read().decode())


def _beginning(documents: Iterable[str]) -> Iterator[str]:
    taken = 0
    for text in documents:
        taken += len(utf8(text))
        yield from parts(text)
        if taken >= TRAINING_BYTES:
            return
