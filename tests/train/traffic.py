"""What a compiled program sends between devices, read from its text."""

import math
import re
from collections import Counter

KINDS = "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
_BITS = {"pred": 8, "bf16": 16} | {f"{kind}{bits}": bits for kind in "fsu" for bits in (8, 16, 32, 64)}


def traffic(hlo: str) -> dict[str, int]:
    """Bytes that the results of each kind of collective take on a device, each as often as the loops around it run.

    One collective may be written many times, as parts of fusions that run beside it: it is counted by its channel, and
    by its name in JAX, since all that `shard_map` makes share a channel. The trips of a loop are the number that its
    condition compares with.
    """
    bodies = _computations(hlo)
    runs = _runs(bodies)
    found: dict[tuple[str, ...], int] = {}
    for name, body in bodies.items():
        for shape, kind, rest in re.findall(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\((.*)$", body, re.MULTILINE):
            names = re.search(r"channel_id=(\d+).*?(?:op_name=\"(.*?)\"|$)", rest)
            assert names, rest
            key = kind, *(text or "" for text in names.groups())
            found[key] = max(found.get(key, 0), runs.get(name, 0) * _bytes(shape))
    total: Counter[str] = Counter()
    for (kind, *_), size in found.items():
        total[kind] += size
    return dict(total)


def _computations(hlo: str) -> dict[str, str]:
    """The lines of each computation; the entry's name is ENTRY."""
    parts = re.split(r"^(?:(ENTRY) %\S+|%(\S+)) \(.*\{$", hlo, flags=re.MULTILINE)[1:]
    return {entry or name: body for entry, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def _runs(bodies: dict[str, str]) -> dict[str, int]:
    """How often each computation runs."""
    runs = {"ENTRY": 1}
    waiting = ["ENTRY"]
    while waiting:
        caller = waiting.pop()
        for line in bodies[caller].splitlines():
            called = re.findall(
                r"(?:calls|to_apply|body|branch_computations|called_computations)=\{?((?:%[^\s,}]+(?:, )?)+)", line
            )
            trips = _trips(bodies[re.search(r"condition=%([^\s,}]+)", line)[1]]) if " while(" in line else 1
            for name in re.findall(r"%([^\s,}]+)", " ".join(called)):
                if runs.get(name, 0) < runs[caller] * trips:
                    runs[name] = runs[caller] * trips
                    waiting.append(name)
    return runs


def _trips(condition: str) -> int:
    (limit,) = re.findall(r"[su]32\[\]\S* constant\((\d+)\)", condition)
    return int(limit)


def _bytes(shape: str) -> int:
    """Of an array, or of a tuple of them."""
    arrays = re.findall(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]", shape)
    return sum(_BITS[kind] // 8 * math.prod(map(int, sizes.split(",") if sizes else [])) for kind, sizes in arrays)
