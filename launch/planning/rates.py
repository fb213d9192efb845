"""How long a step takes at least, by what a chip can do: a model, and no measurement."""

from typing import Any, NamedTuple

from launch.planning.chips import Slice

AGAIN = {"full": 1 / 3}  # of the FLOPs of a step, those that are done again where layers are computed twice
TOUCHED = 2  # times that what is in memory is read or written in a step


class Step(NamedTuple):
    """Seconds of a step: of products; of memory; of what is sent in a slice, and between slices. The step takes as long
    as the longest of them, as if all others went on beside it.
    """

    products: float
    memory: float
    links: float
    network: float

    @property
    def seconds(self) -> float:
        """Of the step."""
        return max(self)


def step(found: dict[str, Any], where: Slice, remat: str) -> Step:
    """The model of a step, of its facts.

    Products: FLOPs per token x tokens of a device, with a third more where the forward pass is done again, over the
    chip's rate in bfloat16. Memory: twice what is there at the peak (parameters and moments are read and written,
    activations written and read), over the rate of HBM. Links: bytes on the wire over half of what all links of a chip
    carry, as each direction carries one half. Network: bytes on the wire between slices over a chip's share of it.
    """
    chip, devices = where.chip, found["devices"]
    flops = found["flops_per_token"] * (1 + AGAIN.get(remat, 0)) * found["tokens_per_step"] / devices
    return Step(
        products=flops / (chip.flops / chip.devices),
        memory=TOUCHED * found["needed_bytes"] / (chip.memory_rate / chip.devices),
        links=(found.get("wire_bytes") or 0) / (chip.links_rate / 2 / chip.devices),
        network=(found.get("slow_wire_bytes") or 0) / (chip.network_rate / chip.devices),
    )


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
