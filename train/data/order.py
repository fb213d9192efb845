"""The order of the windows: another permutation for every (seed, epoch), any place of it in constant time and memory.

Grain's own `index_shuffle` does this too, but 0.2.18 repeats one index and loses another where the length is 2**16 + 1,
2**18 + 1 or 2**20 + 1, takes 20 ms for an index of a tiny set, and gives seed 0 in epoch 1 the order of seed 1 in
epoch 0.
"""

import numpy as np

ROUNDS = 4  # of two half-rounds each
ORDERS = {"own": 0, "shared": None}  # the axis of a batch along which each seed of a population has its own rows


def shuffled(places: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Returns which of `length` windows lie at these places of the endless row of shuffled epochs.

    A Feistel network permutes the next power of two; whoever lands outside walks on until inside, which keeps it a
    permutation (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", cycle walking).
    """
    epochs, indices = np.divmod(np.asarray(places, np.uint64), length)
    keys = mixed(mixed(np.array([seed % 2**64], np.uint64)) + epochs)
    bits = max(2, (length - 1).bit_length())
    indices = _permute(indices, bits, keys)
    while (outside := indices >= length).any():
        indices[outside] = _permute(indices[outside], bits, keys[outside])
    return indices.astype(np.int64)


def draws(places: np.ndarray, seed: int) -> np.ndarray:
    """Returns 64 random bits for each of these places of the endless row: a function of (seed, place)."""
    return mixed(mixed(np.array([~seed % 2**64], np.uint64)) + np.asarray(places, np.uint64))


def unit(bits: np.ndarray) -> np.ndarray:
    """Returns random bits as numbers in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _permute(indices: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """Returns the image of indices below 2**bits: each half in turn takes a keyed hash of the other."""
    low_bits = bits // 2
    low_mask, high_mask = 2**low_bits - 1, 2 ** (bits - low_bits) - 1
    high, low = indices >> low_bits, indices & low_mask
    for turn in range(ROUNDS):
        high = high ^ (mixed(keys + (low << 8) + 2 * turn) & high_mask)
        low = low ^ (mixed(keys + (high << 8) + 2 * turn + 1) & low_mask)
    return (high << low_bits) | low


def mixed(x: np.ndarray) -> np.ndarray:
    """Returns well-mixed 64 bits (the finaliser of SplitMix64; Steele, Lea and Flood 2014); uint64 wraps around."""
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
