"""What a loss is worth: the bits per byte of byte n-grams and of gzip and xz on the same text."""

import gzip
import logging
import lzma
from collections.abc import Iterable

import numpy as np

from eval.baselines.keeping import kept
from model.errors import UserError
from train.data import Data

log = logging.getLogger("heed")
END = 0xFF  # the closing symbol of a document: UTF-8 never uses this byte
ALPHABET = 256
STRENGTH = 5  # how many observations the shorter context is worth
MAX_CONTEXT = 7  # a context and its target are one uint64
MAX_TRAIN_BYTES = 50_000_000  # counting takes about 0.4 s and 40 MB for each million


def baselines(data: Data, max_context: int = 4) -> dict[str, float]:
    """Bits per byte of the validation text by name: `ngram_0` ... `ngram_4` (fitted on the train split), `gzip`, `xz`.

    `train_bytes` is the size of what the n-grams were fitted on: the first documents, up to MAX_TRAIN_BYTES.
    """
    train, validation = _first(data.documents("train"), MAX_TRAIN_BYTES), _first(data.documents("validation"), None)
    ngrams = ngram_bits_per_byte(*train, *validation, max_context)
    named = {f"ngram_{context}": bits for context, bits in ngrams.items()}
    return named | compressor_bits_per_byte(validation[0]) | {"train_bytes": float(len(train[0]))}


def known_baselines(data: Data) -> dict[str, float]:
    """The same, computed once for each text and then kept in the cache folder."""
    return kept(data.fingerprint, lambda: baselines(data))


def compressor_bits_per_byte(text: bytes) -> dict[str, float]:
    """8 x compressed size / size for `gzip -9` and `xz -9` on this text alone."""
    sizes = {"gzip": len(gzip.compress(text, 9, mtime=0)), "xz": len(lzma.compress(text, preset=9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def ngram_bits_per_byte(
    train_bytes: bytes,
    train_offsets: np.ndarray,
    validation_bytes: bytes,
    validation_offsets: np.ndarray,
    max_context: int = 4,
) -> dict[int, float]:
    """The bits per byte, for each context length c, of the interpolated byte n-gram model.

    p_c(x | ctx) = n / (n + 5) * count(ctx, x) / n + 5 / (n + 5) * p_{c-1}(x | shorter ctx), n = count(ctx), and
    p_{-1} = 1/256 (interpolation: Jelinek and Mercer 1980; weights that grow with n: Witten and Bell 1991). The stream
    is the model's, E d1 E d2 E: a context may begin with the E that opens its document and never reaches beyond it, so
    at a document's start the longest context there is serves for the longer ones too. Bits are summed over every byte
    and every closing E, and divided by the bytes of text.

    Raises:
        UserError: the validation split is empty.
        ValueError: a context over 7 bytes, or a byte 0xFF in the text.
    """
    if max_context > MAX_CONTEXT:
        raise ValueError(f"a context of {max_context} bytes does not fit: at most {MAX_CONTEXT}")
    if not len(validation_bytes):
        raise UserError("the validation split holds no text; give another --config.data.validation_split.")
    train = _stream(train_bytes, train_offsets)
    validation = _stream(validation_bytes, validation_offsets)
    probabilities = np.full(len(validation) - 1, 1 / ALPHABET)
    bits = {}
    for context in range(max_context + 1):
        counted = np.unique(_codes(train, context)[_reaches(train, context)], return_counts=True)
        live = _reaches(validation, context)
        probabilities[live] = _interpolate(*counted, _codes(validation, context)[live], probabilities[live])
        bits[context] = float(-np.log2(probabilities).sum() / len(validation_bytes))
    return bits


def _stream(text: bytes, offsets: np.ndarray) -> np.ndarray:
    """The stream E d1 E d2 E ... as uint8."""
    symbols = np.frombuffer(text, np.uint8)
    if (symbols == END).any():
        raise ValueError("the text holds the byte 0xFF, so it is not UTF-8")
    return np.insert(symbols, offsets, END)


def _back(stream: np.ndarray, back: int) -> np.ndarray:
    """The symbol that stands `back` places before each target stream[1:], E before the beginning."""
    padded = np.concatenate([np.full(MAX_CONTEXT, END, np.uint8), stream])
    return padded[MAX_CONTEXT + 1 - back : len(padded) - back]


def _codes(stream: np.ndarray, context: int) -> np.ndarray:
    """The context and the target of stream[1:] as one number each, the target in the lowest byte."""
    codes = np.zeros(len(stream) - 1, np.uint64)
    for back in range(context + 1):
        codes |= _back(stream, back).astype(np.uint64) << np.uint64(8 * back)
    return codes


def _reaches(stream: np.ndarray, context: int) -> np.ndarray:
    """For the targets stream[1:]: whether a context of this length lies in the target's own document."""
    inside = np.ones(len(stream) - 1, bool)
    for back in range(1, context):
        inside &= _back(stream, back) != END
    return inside


def _interpolate(known: np.ndarray, counts: np.ndarray, codes: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """p_c of each code, from the sorted codes of the training text, their counts, and p_{c-1}."""
    cumulative = np.concatenate([[0], np.cumsum(counts)])

    def count(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        return cumulative[np.searchsorted(known, last, "right")] - cumulative[np.searchsorted(known, first, "left")]

    context = codes & ~np.uint64(0xFF)
    seen = count(context, context | np.uint64(0xFF))
    return (count(codes, codes) + STRENGTH * shorter) / (seen + STRENGTH)


def _first(documents: Iterable[str], most: int | None) -> tuple[bytes, np.ndarray]:
    """The text of the first documents, until they have `most` bytes, and where each begins (at last: the length)."""
    texts, offsets = [], [0]
    for document in documents:
        if most is not None and offsets[-1] >= most:
            log.warning("the n-gram baselines count the first %d bytes of the train split", offsets[-1])
            break
        texts.append(document.encode())
        offsets.append(offsets[-1] + len(texts[-1]))
    return b"".join(texts), np.array(offsets)
