"""How long a step takes, by what a chip can do: a model, and no measurement."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from launch.planning.chips import Chip, Slice

# Of the FLOPs of a step those that a remat policy does again, (of matrices, of attention), at most: not what no
# gradient needs, and not the head, which is of no layer. A way forward is a third. Only where there is no program.
AGAIN = {"none": (0, 0), "dots": (0, 1 / 3), "full": (1 / 3, 1 / 3)}
TOUCHED = 2  # times that what is in memory is read or written in a step
PARTS = "products", "memory", "links", "network", "calls"


class Step(NamedTuple):
    """Seconds of a step: of products; of memory; of what is sent in a slice, and between slices; of meeting for it; and
    of the step itself.
    """

    products: float
    memory: float
    links: float
    network: float
    calls: float
    seconds: float


def step(found: dict[str, Any], where: Slice, remat: str, chip: Chip | None = None) -> Step:
    """The model of a step, of its facts; of another `chip` than its slice's, if one is given.

    Products: FLOPs per token that the program executes (where there is none, those of the model, and what `AGAIN` says;
    where it cannot be counted, also logits made again, and attention's way back as splash's kernels do it, so that
    nothing is faster for want of a count) x tokens of a device, over the chip's rate in bfloat16. Memory: twice what is
    there at the peak (parameters and moments are read and written, activations written and read), over the rate of HBM.
    Links: bytes on the wire over half of what all links of a chip carry, as each direction carries one half. Network:
    bytes on the wire between slices over a chip's share of it. Calls: collectives, each as often as it runs. A step of
    TPUs takes as long as the longest of them, as if all others went on beside it; one of a CPU as long as all of them
    together.
    """
    chip, share = chip or where.chip, min(where.sharing, found["devices"])  # a mesh may leave some of them idle
    flops = found.get("executed_flops_per_token") or _with_again(found, remat)
    parts = (
        flops * found["tokens_per_step"] / found["devices"] * share / chip.flops,
        TOUCHED * found["needed_bytes"] * share / chip.memory_rate,
        (found.get("wire_bytes") or 0) * share / (chip.links_rate / 2),
        (found.get("slow_wire_bytes") or 0) * share / chip.network_rate,
        found.get("collective_calls", 0) * chip.call,
    )
    return Step(*parts, seconds=sum(parts) if chip.shared else max(parts))


def _with_again(found: dict[str, Any], remat: str) -> float:
    of_matrices, of_attention = AGAIN[remat]
    attention: float = found["attention_flops_per_token"]
    known = attention * (1 + of_attention) + (found["flops_per_token"] - attention) * (1 + of_matrices)
    if "executed_note" not in found:
        return known
    again: float = found.get("logits_again_flops_per_token", 0)
    return known + again + attention / 2


def fitted(measured: Sequence[tuple[dict[str, Any], float]], where: Slice) -> Chip:
    """The machine whose model comes nearest to measured steps, (facts, seconds) of each: least squares of the relative
    errors, where no rate is negative; then, as these err to the quick side, as many times slower as the median step.
    """
    unit = dataclasses.replace(where.chip, flops=1, memory_rate=1, links_rate=1, network_rate=math.inf, call=1)
    parts = np.array([step(found, where, "none", unit)[: len(PARTS)] for found, _ in measured])
    relative = parts / np.array([[seconds] for _, seconds in measured])
    scale = relative.max(axis=0, initial=1e-300)
    cost, _ = nnls(relative / scale, np.ones(len(measured)))
    cost /= np.median(relative / scale @ cost)
    flops, memory, links, _, call = (float(one) for one in cost / scale)
    return dataclasses.replace(
        where.chip, flops=_rate(flops), memory_rate=_rate(memory), links_rate=_rate(links), call=call
    )


def _rate(cost: float) -> float:
    return 1 / cost if cost else math.inf


def totals(
    found: dict[str, Any], seconds: float, where: Slice, price: float | None, watts: float | None
) -> dict[str, Any]:
    """Of a whole run: chip-hours; by what the user says of a chip, its price an hour and its power, cost and energy."""
    hours = found["steps"] * seconds * where.chips / 3600
    return {
        "chip_hours": hours,
        "cost": None if price is None else hours * price,
        "energy_kwh": None if watts is None else hours * watts / 1000,
    }
