"""What a compiled program sends between devices, and whether it has whole logits, read from its text."""

import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
_BITS = {"pred": 8, "bf16": 16} | {f"{kind}{bits}": bits for kind in "fsu" for bits in (8, 16, 32, 64)}

Array = tuple[str, list[int]]  # the type and the sizes of its axes


class Collective(NamedTuple):
    """What one collective of a program sends in a step: the bytes of its results on a device, each as often as the
    loops around it run; among how many devices it goes (slices, over the slow network between them); and whether other
    work may go on meanwhile.
    """

    kind: str
    bytes: int
    among: int
    together: bool
    slow: bool = False

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
    by its name in JAX, since all that `shard_map` makes share a channel. What goes on in small parts, in fusions in a
    loop, counts where it begins. A loop without collectives may run as often as the data say.

    Raises:
        ValueError: nothing in the program says how often a loop with a collective runs.
    """
    bodies = _computations(hlo)
    runs = _runs(bodies)
    found: dict[tuple[str, ...], Collective] = {}

    def add(name: str, key: tuple[str, ...], one: Collective) -> None:
        apart = name.startswith("async_collective_fusion")
        times = 0 if apart else runs.get(name, 0)
        if times == math.inf:
            raise ValueError(f"{one.kind} of %{name} is in a loop of which the program does not say how often it runs.")
        one = one._replace(bytes=int(times) * one.bytes, together=one.together or apart)
        old = found.get(key, one)
        found[key] = one._replace(bytes=max(one.bytes, old.bytes), together=one.together or old.together)

    for name, body in bodies.items():
        for shape, kind, begun, rest in re.findall(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$", body, re.MULTILINE):
            names = re.search(r"channel_id=(\d+).*?(?:op_name=\"(.*?)\"|$)", rest)
            assert names, rest
            size = _bytes(_results(shape, kind, begun))
            key = kind, *(text or "" for text in names.groups())
            add(name, key, Collective(kind, size, _among(kind, rest), bool(begun)))
        for shape, rest in re.findall(r"= (.*?) send\((.*megascale_transfer_type=.*)$", body, re.MULTILINE):
            kind = re.findall(r"transfer_type=\"(\w+)\"", rest)[0].lower().replace("_", "-")
            slices = re.findall(r"megascale_target=\"\{([\d,:]+)\}x", rest)
            channel = re.findall(r"channel_id=(\d+)", rest)[0]
            among = _count(slices[0]) if slices else 2
            add(name, ("send", channel), Collective(kind, _bytes(_arrays(shape)[:1]), among, True, slow=True))
    assert all(one.bytes for one in found.values()), f"nothing begins {found}"
    return list(found.values())


def _among(kind: str, rest: str) -> int:
    """How many devices are in a group: of those that are listed, or made of numbers in order, or along axes."""
    if kind == "collective-permute":
        return 2
    if made := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(made[1])
    if named := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2]))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    return listed[1].count(",") + 1 if listed else 1


def _count(text: str) -> int:
    """How many numbers `1,2` or `0:15` names."""
    ends = [[int(end) for end in part.split(":")] for part in text.split(",")]
    return sum(part[-1] - part[0] + 1 for part in ends)


def has_whole_logits(hlo: str, tokens: int, vocab_size: int) -> bool:
    """Whether an array of a device has numbers for each of its tokens and of the vocabulary."""
    shapes = {tuple(sizes) for _, sizes in _arrays(hlo)}
    return any(vocab_size in sizes and math.prod(sizes) >= tokens * vocab_size for sizes in shapes)


def _computations(hlo: str) -> dict[str, str]:
    """The lines of each computation; the entry's name is ENTRY."""
    parts = re.split(r"^(?:(ENTRY) %\S+|%(\S+)) \(.*\{$", hlo, flags=re.MULTILINE)[1:]
    return {entry or name: body for entry, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def _runs(bodies: dict[str, str]) -> dict[str, float]:
    """How often each computation runs: infinitely, where the program does not say."""
    runs: dict[str, float] = {"ENTRY": 1}
    waiting = ["ENTRY"]
    while waiting:
        caller = waiting.pop()
        for line in bodies[caller].splitlines():
            called = re.findall(
                r"(?:calls|to_apply|body|branch_computations|called_computations)=\{?((?:%[^\s,}]+(?:, )?)+)", line
            )
            trips = _trips(line, bodies[caller], bodies) if " while(" in line else 1
            for name in re.findall(r"%([^\s,}]+)", " ".join(called)):
                if runs.get(name, 0) < runs[caller] * trips:
                    runs[name] = runs[caller] * trips
                    waiting.append(name)
    return runs


def _trips(line: str, caller: str, bodies: dict[str, str]) -> float:
    """How often a `while` runs: as XLA writes beside it (for CPUs), or what its counter takes, in equal steps, from one
    constant to the one that its condition wants it below; else infinitely.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(known[1])
    (first, condition, body), *_ = re.findall(r"while\(%(\S+)\), condition=%([^\s,]+), body=%([^\s,]+)", line)
    here, ends, inside = map(_instructions, (caller, bodies[condition], bodies[body]))
    if counted := re.fullmatch(r"\[(\d+)\] LT (\d+)", _value("ROOT", ends)):
        counter, limit = map(int, counted.groups())
        start, after = _element(here[first], counter, here), _element(inside["ROOT"], counter, inside)
        stepped = re.fullmatch(rf"\[{counter}\] \+ (\d+)", after)
        if start.isdigit() and stepped:
            return math.ceil((limit - int(start)) / int(stepped[1]))  # a product in a ring of devices goes by twos
    return math.inf


class _Instruction(NamedTuple):
    kind: str
    inside: str  # its parentheses
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([^\s,]+)", self.inside)


def _instructions(body: str) -> dict[str, _Instruction]:
    """Those of a computation, by name; the one that it returns also by ROOT."""
    found = re.findall(r"^\s*(ROOT )?%(\S+) = .*? ([\w-]+)\((.*?)\)(.*)$", body, re.MULTILINE)
    return {key: _Instruction(*one) for root, name, *one in found for key in (name, root.strip()) if key}


def _element(of: _Instruction, number: int, lines: dict[str, _Instruction]) -> str:
    """The value of an element of a tuple, if it is made right here."""
    return _value(of.operands[number], lines) if of.kind == "tuple" else ""


def _value(name: str, lines: dict[str, _Instruction]) -> str:
    """A scalar, written by constants and by elements of what the computation is given, such as `[3] + 1`."""
    one = lines[name]
    values = [_value(operand, lines) for operand in one.operands] if one.kind in ("copy", "add", "compare") else []
    match one.kind:
        case "constant":
            return one.inside
        case "copy":
            return values[0]
        case "add":
            return " + ".join(values)
        case "compare":
            return f" {one.attributes.split('direction=')[1][:2]} ".join(values)
        case "get-tuple-element" if lines[one.operands[0]].kind == "parameter":
            return f"[{one.attributes.split('index=')[1].split(',')[0]}]"
    return f"%{name}"


def _results(shape: str, kind: str, begun: str) -> list[Array]:
    """The arrays that a collective makes: where it is begun, and done later, some name their operands before them."""
    arrays = _arrays(shape)
    if begun and kind in ("all-gather", "collective-permute"):
        arrays = [one for one in arrays if one[1]]  # without flags
        return arrays[len(arrays) // 2 :]
    return arrays


def _bytes(arrays: list[Array]) -> int:
    return sum(_BITS[kind] // 8 * math.prod(sizes) for kind, sizes in arrays)


def _arrays(text: str) -> list[Array]:
    """The type and the sizes of each array that a text names."""
    found = re.findall(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]", text)
    return [(kind, [int(size) for size in sizes.split(",") if size]) for kind, sizes in found]
