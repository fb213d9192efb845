"""The floating-point operations of the products that a compiled program executes, what is done again included."""

import math
import re
from collections import defaultdict

import numpy as np

from launch.planning.compiled.program import computations, runs

_SHAPE = re.compile(r"^\s*(?:ROOT )?%(\S+) = \w+\[([\d,]*)\]", re.MULTILINE)
_PRODUCT = re.compile(
    r"= \w+\[([\d,]*)\]\S* (dot|convolution)\([^%)]*%([^\s,)]+), [^%)]*%([^\s,)]+)\)(.*)$", re.MULTILINE
)
_KERNEL = re.compile(r"%(\S+) = .*custom_call_target=\"tpu_custom_call\"")
_HIDDEN = re.compile(r"custom_call_target=\"([^\"]*(?:gemm|matmul|conv)[^\"]*)\"", re.IGNORECASE)


def executed_flops(hlo: str) -> float:
    """Two for each multiplication of the dots and convolutions (in which the compiler for TPUs writes dots) of a device
    in a step, each as often as the loops around it run; of branches all. Kernels are not looked into (`kernels`).

    Raises:
        ValueError: nothing in the program says how often a loop with a product runs, or what a library multiplies.
    """
    bodies = computations(hlo)
    times, total = runs(bodies, sum), 0.0
    for name, body in bodies.items():
        if times[name] and (hidden := _HIDDEN.search(body)):
            raise ValueError(f"{hidden[1]} of %{name} does not say what it multiplies.")
        found = _PRODUCT.findall(body) if times[name] else []
        if found and times[name] == math.inf:
            raise ValueError(f"a product of %{name} is in a loop of which the program does not say how often it runs.")
        shapes = {one: _sizes(sizes) for one, sizes in _SHAPE.findall(body)} if found else {}
        for result, kind, left, right, rest in found:
            count = _of_dot if kind == "dot" else _of_convolution
            total += times[name] * 2 * count(_sizes(result), shapes[left], shapes[right], rest)
    return total


def kernels(hlo: str) -> dict[str, float]:
    """How often each kernel of Pallas runs on a device in a step, by the name that its writer gave it."""
    bodies, total = computations(hlo), defaultdict[str, float](float)
    times = runs(bodies, sum)
    for name, body in bodies.items():
        for one in _KERNEL.findall(body):
            total[one.partition(".")[0]] += times[name]
    return dict(total)


def attention_passes(hlo: str, layers: int) -> float:
    """How much of attention's products, forward and back, splash's kernels do a layer: 1, and more for what they do
    again. Of the six products of a pair of query and key its forward kernel does two, and those of the way back, which
    make scores anew, three (queries) and four (keys and values).

    Raises:
        ValueError: a kernel that is none of these.
    """
    products, total = {"fwd": 2, "dq": 3, "dkv": 4}, 0.0
    for name, times in kernels(hlo).items():
        part = name.removeprefix("splash_mha_").partition("_")[0]
        if part not in products:
            raise ValueError(f"kernel %{name} does not say what it multiplies.")
        total += times / layers * products[part] / 6
    return total


def _of_dot(result: list[int], left: list[int], right: list[int], rest: str) -> int:
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    return math.prod(result) * math.prod(left[axis] for axis in _sizes(summed[1] if summed else ""))


def _of_convolution(result: list[int], left: list[int], right: list[int], rest: str) -> int:
    """Multiplications of numbers that are there: none with what a window sees between or beside them."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    assert labels, rest
    lhs, rhs, out = labels.groups()
    windows = dict(re.findall(r"(\w+)=(\S+)", re.findall(r"window=\{(.*?)\}", rest)[0] if "window=" in rest else ""))
    total = math.prod(result[out.index(axis)] for axis in "bf") * right[rhs.index("i")]
    for axis in filter(str.isdigit, lhs):
        window = {key: value.split("x")[int(axis)] for key, value in windows.items()}
        total *= _met(left[lhs.index(axis)], right[rhs.index(axis)], result[out.index(axis)], window)
    return total


def _met(size: int, kernel: int, result: int, window: dict[str, str]) -> int:
    """How many pairs of a place of the result and one of the kernel meet a number of the input, along an axis."""
    stride, spread, apart = (int(window.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(window.get("pad", "0_0").split("_")[0])
    places = np.arange(result)[:, None] * stride + np.arange(kernel) * apart - before
    return int(np.sum((places >= 0) & (places <= (size - 1) * spread) & (places % spread == 0)))


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]
