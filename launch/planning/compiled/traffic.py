"""What a compiled program sends between devices, and whether it has whole logits, read from its text."""

import math
import re
from collections import Counter
from typing import NamedTuple

from launch.planning.compiled.program import Array, arrays, computations, loops, runs

KINDS = "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
_GOES_ON = "async_collective_fusion"
_BITS = {"pred": 8, "bf16": 16} | {f"{kind}{bits}": bits for kind in "fsu" for bits in (8, 16, 32, 64)}


class Collective(NamedTuple):
    """What one collective of a program sends in a step: the bytes of its results on a device, each as often as the
    loops around it run (`times`); among how many devices it goes (slices, over the slow network between them); and
    whether other work may go on meanwhile.
    """

    kind: str
    bytes: int
    among: int
    together: bool
    slow: bool = False
    times: int = 1

    @property
    def wire(self) -> float:
        """The bytes that a device sends, if each kind goes round a ring of its N devices: of V bytes in all V (N - 1) /
        N, and of a sum of all twice that.
        """
        if self.kind == "collective-permute":
            return float(self.bytes)
        whole = self.bytes * self.among if self.kind == "reduce-scatter" else self.bytes
        return whole * (self.among - 1) / self.among * (2 if self.kind == "all-reduce" else 1)


def traffic(hlo: str) -> dict[str, int]:
    """Bytes that the results of each kind of collective of a slice take on a device in a step.

    Raises:
        ValueError: as `collectives`.
    """
    total: Counter[str] = Counter()
    for one in collectives(hlo):
        total[one.kind] += 0 if one.slow else one.bytes
    return dict(total)


def collectives(hlo: str) -> list[Collective]:
    """All that a program sends between devices.

    One collective may be written many times, as parts of fusions that run beside it: it is counted by its channel, and
    by its name in JAX, or where the compiler drops that by its loop, since all that `shard_map` makes share a channel.
    What goes on in small parts, in fusions in a loop, counts where it begins. A loop without collectives may run as
    often as the data say.

    Raises:
        ValueError: nothing in the program says how often a loop with a collective runs.
    """
    bodies = computations(hlo)
    trips, within, partitions = runs(bodies, max), loops(bodies), re.search(r"^HloModule .*num_partitions=(\d+)", hlo)
    everyone = int(partitions[1]) if partitions else 1
    found: dict[tuple[str, ...], Collective] = {}

    def add(name: str, key: tuple[str, ...], one: Collective) -> None:
        apart = name.startswith(_GOES_ON)
        times = 0 if apart else trips[name]
        if times == math.inf:
            raise ValueError(f"{one.kind} of %{name} is in a loop of which the program does not say how often it runs.")
        one = one._replace(bytes=int(times) * one.bytes, times=int(times), together=one.together or apart)
        old = found.get(key, one)
        most = max(one, old, key=lambda one: one.bytes)
        found[key] = most._replace(together=one.together or old.together)

    for name, body in bodies.items():
        for shape, kind, begun, rest in re.findall(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$", body, re.MULTILINE):
            names = re.search(r"channel_id=(\d+).*?(?:op_name=\"(.*?)\"|$)", rest)
            assert names, rest
            size = _bytes(_results(shape, kind, begun))
            add(
                name,
                (kind, names[1], names[2] or within[name]),
                Collective(kind, size, _among(kind, rest, everyone), bool(begun)),
            )
        for shape, rest in re.findall(r"= (.*?) send\((.*megascale_transfer_type=.*)$", body, re.MULTILINE):
            kind = re.findall(r"transfer_type=\"(\w+)\"", rest)[0].lower().replace("_", "-")
            slices = re.findall(r"megascale_target=\"\{([\d,:]+)\}x", rest)
            channel = re.findall(r"channel_id=(\d+)", rest)[0]
            among = _count(slices[0]) if slices else 2
            add(name, ("send", channel), Collective(kind, _bytes(arrays(shape)[:1]), among, True, slow=True))
    for key in [key for key, one in found.items() if not one.bytes and key[-1] in bodies]:  # begun outside of its loop
        begun = {
            other: one._replace(together=True) for other, one in found.items() if other[:2] == key[:2] and one.bytes
        }
        if begun:
            found |= begun
            del found[key]
    assert all(one.bytes for one in found.values()), f"nothing begins {found}"
    return list(found.values())


def _among(kind: str, rest: str, everyone: int) -> int:
    """How many devices are in a group: of those that are listed, or made of numbers in order, or along axes; all where
    none is named.
    """
    if kind == "collective-permute":
        return 2
    if made := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(made[1])
    if named := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2]))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    return listed[1].count(",") + 1 if listed else everyone


def _count(text: str) -> int:
    """How many numbers `1,2` or `0:15` names."""
    ends = [[int(end) for end in part.split(":")] for part in text.split(",")]
    return sum(part[-1] - part[0] + 1 for part in ends)


def has_whole_logits(hlo: str, tokens: int, vocab_size: int) -> bool:
    """Whether an array of a device has numbers for each of its tokens and of the vocabulary."""
    shapes = {tuple(sizes) for _, sizes in arrays(hlo)}
    return any(vocab_size in sizes and math.prod(sizes) >= tokens * vocab_size for sizes in shapes)


def _results(shape: str, kind: str, begun: str) -> list[Array]:
    """The arrays that a collective makes: where it is begun, and done later, some name their operands before them."""
    found = arrays(shape)
    if begun and kind in ("all-gather", "collective-permute"):
        found = [one for one in found if one[1]]  # without flags
        return found[len(found) // 2 :]
    return found


def _bytes(some: list[Array]) -> int:
    return sum(_BITS[kind] // 8 * math.prod(sizes) for kind, sizes in some)
