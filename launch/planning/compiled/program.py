"""The text of a compiled program: its computations, how often each runs, and its arrays."""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

Array = tuple[str, list[int]]  # the type and the sizes of its axes
_CALLED = re.compile(
    r"(?:calls|to_apply|body|(?:true|false)_computation|(?:branch|called)_computations)=\{?((?:%[^\s,}]+(?:, )?)+)"
)


def computations(hlo: str) -> dict[str, str]:
    """The lines of each computation; the entry's name is ENTRY."""
    parts = re.split(r"^(?:(ENTRY) %\S+|%(\S+)) \(.*\{$", hlo, flags=re.MULTILINE)[1:]
    return {entry or name: body for entry, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def runs(bodies: dict[str, str], together: Callable[[Iterable[float]], float]) -> dict[str, float]:
    """How often each computation runs, in the loops around it: infinitely, where the program does not say. `together`
    is `sum` over the places where it is called, or `max`, as if it were written down in one of them alone.
    """
    callers = defaultdict[str, list[tuple[str, float]]](list)
    for caller, body in bodies.items():
        for line in body.splitlines():
            if called := _CALLED.findall(line):
                trips = _trips(line, body, bodies) if " while(" in line else 1
                for name in re.findall(r"%([^\s,}]+)", " ".join(called)):
                    callers[name].append((caller, trips))

    @functools.cache
    def count(name: str) -> float:
        known = [count(caller) * trips for caller, trips in callers[name] if count(caller)]
        return 1 if name == "ENTRY" else together([0, *known])

    return {name: count(name) for name in bodies}


def loops(bodies: dict[str, str]) -> dict[str, str]:
    """The body of the innermost loop in which each computation lies, or ENTRY."""
    callers, found = dict[str, str](), {"ENTRY": "ENTRY"}
    for caller, body in bodies.items():
        for line in body.splitlines():
            for name in re.findall(r"%([^\s,}]+)", " ".join(_CALLED.findall(line))):
                callers.setdefault(name, caller)
                if " while(" in line:
                    found[name] = name

    def within(name: str) -> str:
        if name not in found:
            found[name] = within(callers[name]) if name in callers else name
        return found[name]

    return {name: within(name) for name in bodies}


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


def arrays(text: str) -> list[Array]:
    """The type and the sizes of each array that a text names."""
    found = re.findall(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]", text)
    return [(kind, [int(size) for size in sizes.split(",") if size]) for kind, sizes in found]
