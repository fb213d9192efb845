"""The chips that a run may be planned for, and the slices that are made of them."""

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterable

from model.errors import UserError

GB = 10**9


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do, as its maker says: FLOP/s of products in bfloat16, bytes of its memory and bytes a second
    from there, over all its links to neighbours in both directions, and over the network between slices.

    `devices` are those that jax sees of a chip, `dims` the axes of a slice. A machine holds `per_host` chips, or up
    to `alone` if it is a slice by itself. `runtime` and `kind` are the words of TPU VMs, whose types count cores (two a
    chip) or chips; `gke` is that of GKE. (Google Cloud's pages of each TPU; for links, "How to Scale Your Model",
    part 2.) The devices of a CPU are parts of one machine, which is the chip: they share what it can do, one thing is
    done after the other, and each collective costs each of them `call` seconds of meeting the others.
    """

    flops: float
    memory: float
    memory_rate: float
    links_rate: float
    network_rate: float
    dims: int
    devices: int = 1
    per_host: int = 4
    alone: int = 4
    kind: str = ""  # empty: there are no TPU VMs of it
    counts_cores: bool = False
    runtime: str = ""
    gke: str = ""
    shared: bool = False
    call: float = 0


CHIPS = {
    "v4": Chip(
        2.75e14, 32e9, 1.2e12, 540 * GB, 6.25 * GB, 3, kind="v4", counts_cores=True,
        runtime="tpu-ubuntu2204-base", gke="tpu-v4-podslice",
    ),
    "v5e": Chip(
        1.97e14, 16e9, 8.1e11, 360 * GB, 3.125 * GB, 2, alone=8, kind="v5litepod",
        runtime="v2-alpha-tpuv5-lite", gke="tpu-v5-lite-podslice",
    ),
    "v5p": Chip(
        4.59e14, 96e9, 2.8e12, 1080 * GB, 6.25 * GB, 3, kind="v5p", counts_cores=True,
        runtime="v2-alpha-tpuv5", gke="tpu-v5p-slice",
    ),
    "v6e": Chip(
        9.2e14, 32e9, 1.6e12, 720 * GB, 12.5 * GB, 2, alone=8, kind="v6e",
        runtime="v2-alpha-tpuv6e", gke="tpu-v6e-slice",
    ),
    "tpu7x": Chip(
        2.307e15, 206e9, 7.38e12, 1200 * GB, 12.5 * GB, 3, devices=2, gke="tpu7x"
    ),
}  # fmt: skip
# This machine: fitted (`rates.fitted`) to steps of tests/launch/planning/test_here.py on two cores of an AMD EPYC at
# which others were at work, 2026-11-27. How many times slower another one is, `--against` tells.
HERE = {"cpu": Chip(5.6e10, 0, 1.9e9, 4.8e9, math.inf, 1, shared=True, call=8e-4)}
# The slices that there are, by the axes of their chips: of three, below 64 chips these, and then cubes of 64. (Google
# Cloud's pages of each TPU, and of TPUs in GKE.)
GRIDS: dict[int, set[tuple[int, ...]]] = {
    2: {(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)},
    3: {(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), *itertools.combinations_with_replacement(range(4, 36, 4), 3)},
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one kind as a grid, such as v5e:16x16, and how many such slices."""

    name: str
    grid: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """Its kind."""
        return (CHIPS | HERE)[self.name]

    @property
    def chips(self) -> int:
        """Those of all slices."""
        return self.slices * (1 if self.chip.shared else math.prod(self.grid))

    @property
    def devices(self) -> int:
        """Those that jax sees in all slices."""
        return math.prod(self.grid) * self.slices * self.chip.devices

    @property
    def sharing(self) -> int:
        """How many of them share what a chip can do."""
        return self.devices // self.chips

    @property
    def hosts(self) -> int:
        """The virtual machines of one slice."""
        chips = math.prod(self.grid)
        return 1 if chips <= self.chip.alone else max(1, chips // self.chip.per_host)

    @property
    def topology(self) -> str:
        """As it is asked for: v5e:16x16."""
        return f"{self.name}:{_told(self.grid)}"

    @property
    def accelerator_type(self) -> str:
        """The word of TPU VMs: v5litepod-256, v5p-128.

        Raises:
            UserError: there are none of this chip.
        """
        if not self.chip.kind:
            raise UserError(
                f"--topology={self.topology}: there are no TPU VMs of {self.name}, which GKE alone serves; take "
                "launch.manifest."
            )
        return f"{self.chip.kind}-{math.prod(self.grid) * (2 if self.chip.counts_cores else 1)}"


def parse_topology(text: str, slices: int = 1, here: bool = False) -> Slice:
    """`v5e:16x16` as a slice; `cpu:8` too, as eight devices of this machine, if it may be `here`.

    Raises:
        UserError: there is no such chip, or it is no grid of it; with the nearest that is.
    """
    name, _, sizes = text.partition(":")
    grid, known = sizes.split("x"), CHIPS | (HERE if here else {})
    if name not in known:
        raise UserError(
            f"--topology={text}: {name!r} is none of {', '.join(known)}; the nearest is {_near(name, known)}."
        )
    dims = known[name].dims
    if len(grid) != dims or not all(one.isascii() and one.isdecimal() and int(one) for one in grid):
        raise UserError(f"--topology={text}: slices of {name} have {_SIZES[dims]}, such as {name}:{example(name)}.")
    made = tuple(map(int, grid))
    grids = GRIDS.get(dims, {made})
    if made not in grids:
        closest = min(grids, key=lambda one: sum(abs(math.log(a / b)) for a, b in zip(one, made, strict=True)))
        raise UserError(
            f"--topology={text}: there are no such slices of {name}; the nearest is {name}:{_told(closest)}."
        )
    if slices < 1:
        raise UserError(f"--slices={slices} must be at least 1.")
    if slices > 1 and known[name].shared:
        raise UserError(f"--slices={slices}: {text} is one machine; set it to 1.")
    return Slice(name, made, slices)


_SIZES = {1: "one size", 2: "2 sizes", 3: "3 sizes"}


def _near(name: str, known: Iterable[str]) -> str:
    """A slice, for a name that is none: that of the same size, if the word is Google Cloud's, such as v5litepod-16."""
    kind, _, count = name.rpartition("-")
    for one, chip in CHIPS.items():
        for grid in sorted(GRIDS[chip.dims]):
            if kind in (one, chip.kind) and count == str(math.prod(grid) * (2 if chip.counts_cores else 1)):
                return f"{one}:{_told(grid)}"
    found = difflib.get_close_matches(name, known, 1, cutoff=0)[0]
    return f"{found}:{example(found)}"


def example(name: str) -> str:
    """A grid of a chip."""
    return _told((4,) * (CHIPS | HERE)[name].dims)


def _told(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))
