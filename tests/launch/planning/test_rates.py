"""The least time of a step, by hand."""

import pytest

from launch.planning.chips import parse_topology
from launch.planning.rates import Step, step, totals

FOUND = {
    "devices": 16,
    "flops_per_token": 6e9,
    "tokens_per_step": 32_000,
    "needed_bytes": 5e9,
    "wire_bytes": 9e9,
    "slow_wire_bytes": 3e8,
    "steps": 70,
}


def test_each_part_takes_what_its_chip_gives() -> None:
    """v5e: 197 TFLOP/s, 810 GB/s, half of 360 GB/s of links, 3.125 GB/s between slices."""
    one = step(FOUND, parse_topology("v5e:4x4"), "none")
    assert one == Step(
        products=pytest.approx(6e9 * 2000 / 1.97e14),
        memory=pytest.approx(2 * 5e9 / 8.1e11),
        links=pytest.approx(9e9 / 180e9),
        network=pytest.approx(3e8 / 3.125e9),
    )
    assert one.seconds == max(one)
    again = step(FOUND, parse_topology("v5e:4x4"), "full")
    assert again.products == pytest.approx(one.products * 4 / 3)


def test_two_devices_of_a_chip_share_it() -> None:
    one = step(FOUND | {"devices": 16}, parse_topology("tpu7x:2x2x2"), "none")
    assert one.products == pytest.approx(6e9 * 2000 / (2.307e15 / 2))
    assert one.links == pytest.approx(9e9 / (1200e9 / 4))


def test_what_nobody_has_said_stays_unknown() -> None:
    where = parse_topology("v5e:4x4")
    assert totals(FOUND, 36.0, where, None, None) == {
        "chip_hours": pytest.approx(70 * 36 * 16 / 3600), "cost": None, "energy_kwh": None,
    }  # fmt: skip
    found = totals(FOUND, 36.0, where, 1.5, 200)
    assert found["cost"] == pytest.approx(1.5 * found["chip_hours"])
    assert found["energy_kwh"] == pytest.approx(0.2 * found["chip_hours"])
