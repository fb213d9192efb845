"""What is in a device's memory when most is, by classes: read from what the compiler for TPUs dumps of a program."""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

CLASSES = "parameters", "optimizer", "batch", "gradients", "saved_activations", "logits", "temporaries"
_FORWARD, _BACKWARD = re.compile(r"jvp\("), re.compile(r"transpose\(")
_SLICES = 64  # parts of a vocabulary, at most, whose scores may be there one after the other


class Value(NamedTuple):
    """A value at its place: the number of its allocation, its offset there and its bytes, its name and its shape."""

    allocation: int
    offset: int
    size: int
    name: str
    shape: tuple[int, ...]


class Peak(NamedTuple):
    """The bytes of each class at the time when most is there, and their sum."""

    classes: dict[str, int]
    bytes: int


def at_peak(folder: Path, vocab_size: int, parameters: Sequence[tuple[int, ...]], others: Collection[int] = ()) -> Peak:
    """The classes of a program that was dumped into a folder (`--xla_dump_to`), of HBM alone.

    Values that share a place count once, and so does an argument that a result replaces. What is alive at a time is
    known from live ranges, and what it is from the name of its operation in JAX: `parameters`, `optimizer` and `batch`
    are arguments; `saved_activations` are made on the way forward and alive on the way back; `gradients` are made on
    the way back in the shape of a parameter (`parameters`: these shapes, of a device's part or of all); `logits` have
    an axis of the vocabulary, or of a part of it, unless it is of the size of one of the `others`.

    Raises:
        ValueError: the dump is none that this reads.
    """
    files = {part: next(folder.glob(f"*after_optimizations{part}.txt"), None) for part in _PARTS}
    if None in files.values():
        raise ValueError(f"the compiler has dumped {sorted(one.name for one in folder.iterdir())}")
    program, assignment, ranges = (files[part].read_text() for part in _PARTS)  # type: ignore[union-attr]
    named = _operations(program)
    values, arguments = _values(assignment)
    alive = {name: (int(a), int(b)) for name, a, b in re.findall(r"^    (\S+):(\d+)-(\d+)$", ranges, re.MULTILINE)}
    backward = [alive[key][0] for key in alive if _BACKWARD.search(named.get(_plain(key), ""))]
    turn = min(backward, default=math.inf)
    classes = dict.fromkeys(CLASSES, 0)
    for size, names in arguments:
        classes[_of_argument([named.get(_plain(name), "") for name in names])] += size
    temporary = [one for one in values if one.name in alive]
    time = max({alive[one.name][0] for one in temporary}, key=lambda t: _union(_at(temporary, alive, t)))
    shapes = {tuple(sorted(shape)) for shape in parameters}
    of_scores = {vocab_size // part for part in range(1, _SLICES + 1) if vocab_size % part == 0} - {1, *others}
    for place, some in _places(_at(temporary, alive, time)).items():
        sharing = [one for one in values if (one.allocation, one.offset, one.size) == (*place[:2], place[2])]
        kind = _of_temporary(some, sharing, named, alive, turn, of_scores, shapes)
        classes[kind] += place[2]
    return Peak(classes, sum(classes.values()))


def main_memory(folder: Path) -> int:
    """The bytes of HBM that a dumped program is given, at most: what is never there together may share them.

    Raises:
        ValueError: the dump does not say.
    """
    for file in folder.glob("*after_optimizations-memory-usage-report.txt"):
        if told := re.search(r"^Memory Space: default .*\nTotal bytes: (\d+)", file.read_text(), re.MULTILINE):
            return int(told[1])
    raise ValueError("the compiler has dumped no report of its memory")


_PARTS = "", "-buffer-assignment", "-live-range"


def _operations(program: str) -> dict[str, str]:
    """The names in JAX of instructions, by their own."""
    found = re.findall(r'^\s*(?:ROOT )?%(\S+) = .*?metadata=\{op_name="((?:[^"\\]|\\.)*)"', program, re.MULTILINE)
    return dict(found)


def _values(assignment: str) -> tuple[list[Value], list[tuple[int, list[str]]]]:
    """The values in temporary allocations of the device's main memory; and of each argument the bytes, and the names of
    the values there: of results, too, that take its place.
    """
    values, arguments = list[Value](), list[tuple[int, list[str]]]()
    for number, head, body in re.findall(r"^allocation (\d+): (.*)\n((?: value: .*\n)*)", assignment, re.MULTILINE):
        if "color" in head or "thread-local" in head:
            continue
        found = re.findall(r"<\d+ (\S+)(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)", body)
        if "parameter" in head:
            arguments.append((int(re.findall(r"size (\d+)", head)[0]), [name for name, *_ in found]))
            continue
        for name, size, offset, text in found:
            sizes = re.match(r"\w+\[([\d,]*)\]", text)
            if sizes and not re.search(r"S\(\d+\)\}?$", text.strip()):
                shape = tuple(int(one) for one in sizes[1].split(",") if one)
                values.append(Value(int(number), int(offset), int(size), _braced(name), shape))
    return values, arguments


def _braced(name: str) -> str:
    return name if name.endswith("}") else f"{name}{{}}"


def _plain(name: str) -> str:
    return name.partition("{")[0]


def _at(values: Sequence[Value], alive: dict[str, tuple[int, int]], time: int) -> list[Value]:
    return [one for one in values if alive[one.name][0] <= time <= alive[one.name][1]]


def _places(values: Sequence[Value]) -> dict[tuple[int, int, int], list[Value]]:
    """The values by place (allocation, offset, bytes), without what lies in a larger one."""
    found: dict[tuple[int, int, int], list[Value]] = defaultdict(list)
    ends: dict[int, int] = defaultdict(int)
    for one in sorted(values, key=lambda one: (one.allocation, one.offset, -one.size)):
        start, stop = one.offset, one.offset + one.size
        if found.get((one.allocation, start, one.size)):
            found[one.allocation, start, one.size].append(one)
        elif stop > ends[one.allocation]:
            found[one.allocation, start, one.size].append(one)
            ends[one.allocation] = stop
    return found


def _union(values: Sequence[Value]) -> int:
    return sum(size for _, _, size in _places(values))


def _of_argument(names: Sequence[str]) -> str:
    name = next((name for name in names if name.startswith(("state.", "batch"))), "")
    if name.startswith("state.params"):
        return "parameters"
    return "optimizer" if name.startswith("state.") else "batch"


def _of_temporary(
    there: Sequence[Value],
    sharing: Sequence[Value],
    named: dict[str, str],
    alive: dict[str, tuple[int, int]],
    turn: float,
    of_scores: set[int],
    shapes: set[tuple[int, ...]],
) -> str:
    """The class of what is at a place: by what is there now, or else by what is there in this shape at other times."""
    shape = there[0].shape
    same = [one for one in (*there, *sharing) if one.shape == shape and _plain(one.name) in named]
    name = named[_plain(same[0].name)] if same else ""
    if of_scores & {*shape} and tuple(sorted(shape)) not in shapes:
        return "logits"
    if _BACKWARD.search(name):
        return "gradients" if tuple(sorted(shape)) in shapes else "temporaries"
    later = max(alive[one.name][1] for one in (*there, *same) if one.name in alive)
    if _FORWARD.search(name) and (later > turn or "dynamic_update" in name):
        return "saved_activations"
    return "temporaries"
