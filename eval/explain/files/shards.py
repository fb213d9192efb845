"""Many arrays as safetensors: one file, or several with an index, as other tools write and read large models."""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from train.run.files.json_files import loads, write

SHARD = 2 * 2**30  # bytes of a file at most, and so of what is in memory to be written


def write_shards(
    file: Path,
    first: Mapping[str, np.ndarray],
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
    most: int = SHARD,
) -> None:
    """Writes `first`, with the metadata, and then arrays as they come, all or none of them.

    Where they take more than `most` bytes they go on in NAME-2.safetensors, NAME-3.safetensors, ..., and
    NAME.safetensors.index.json says which file has which, as Hugging Face's libraries do of weights. An array is never
    split.

    Raises:
        OSError, SafetensorError: they cannot be written.
    """
    places, held = dict[str, str](), {name: np.ascontiguousarray(x) for name, x in first.items()}
    total, number = 0, 1
    with contextlib.ExitStack() as stack:
        new = dict[Path, Path]()

        def write_held() -> None:
            nonlocal total
            name = file.name if number == 1 else f"{file.stem}-{number}{file.suffix}"
            part = file.with_name(f".{name}.{os.getpid()}.new")
            stack.callback(part.unlink, missing_ok=True)
            save_file(held, part, dict(metadata) if number == 1 else None)
            new[part] = file.with_name(name)
            places.update(dict.fromkeys(held, name))
            total += _bytes(held)

        for name, x in arrays:
            if held and _bytes(held) + x.nbytes > most:
                write_held()
                held, number = {}, number + 1
            held[name] = np.ascontiguousarray(x)
        write_held()
        index = file.with_name(f"{file.name}.index.json")
        former = _named(index)
        for part, whole in new.items():
            part.replace(whole)
    for name in former - {whole.name for whole in new.values()}:
        file.with_name(name).unlink(missing_ok=True)
    if len(new) > 1:
        write(index, {"metadata": {"total_size": total}, "weight_map": places})
    else:
        index.unlink(missing_ok=True)  # of what was there before


def _named(index: Path) -> set[str]:
    """The files beside it that an index of ours names."""
    try:
        names = {*loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    stem = index.name.removesuffix(".safetensors.index.json")
    return {name for name in names if re.fullmatch(rf"{re.escape(stem)}-\d+\.safetensors", str(name))}


def _bytes(held: Mapping[str, np.ndarray]) -> int:
    return sum(x.nbytes for x in held.values())
