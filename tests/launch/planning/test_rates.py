"""The least time of a step, by hand."""

import dataclasses
import math
from typing import Any

import pytest

from launch.planning.chips import parse_topology
from launch.planning.rates import AGAIN, PARTS, Step, fitted, step, totals
from model.stack.config import REMAT

FOUND = {
    "devices": 16,
    "flops_per_token": 6e9,
    "attention_flops_per_token": 1e9,
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
        calls=0,
        seconds=one.network,
    )
    assert one.seconds == max(one[: len(PARTS)])


def test_what_is_done_again_is_known_of_the_program_or_stated() -> None:
    """Of every remat policy, so that a new one is not forgotten: matrices 5e9 here, attention 1e9."""
    where = parse_topology("v5e:4x4")
    products = {name: step(FOUND, where, name).products * 1.97e14 / 2000 for name in REMAT}
    assert products == {"none": 6e9, "dots": pytest.approx(6e9 + 1e9 / 3), "full": pytest.approx(8e9)}
    assert AGAIN.keys() == REMAT.keys()
    # As many as splash's kernels, three products of six more on the way back, and the logits.
    uncounted = FOUND | {"executed_flops_per_token": None, "executed_note": "so", "logits_again_flops_per_token": 3e8}
    found = step(uncounted, where, "dots").products * 1.97e14 / 2000
    assert found == pytest.approx(6e9 + 1e9 / 3 + 1e9 / 2 + 3e8)
    known = FOUND | {"executed_flops_per_token": 7e9}
    assert all(step(known, where, name).products == pytest.approx(7e9 * 2000 / 1.97e14) for name in REMAT)


def test_devices_of_a_cpu_share_it_and_do_one_thing_after_the_other() -> None:
    where = parse_topology("cpu:16", here=True)
    chip = dataclasses.replace(where.chip, flops=1e11, memory_rate=2e9, links_rate=4e9, call=1e-3)
    one = step(FOUND | {"collective_calls": 70}, where, "none", chip)
    expected = 6e9 * 32_000 / 1e11, 2 * 16 * 5e9 / 2e9, 16 * 9e9 / 2e9, 0, 0.07
    assert one == pytest.approx((*expected, sum(expected)))
    assert (where.chips, where.devices) == (1, 16)
    # A mesh of two of them leaves it to these.
    two = step(FOUND | {"devices": 2, "collective_calls": 70}, where, "none", chip)
    assert two[:3] == pytest.approx((6e9 * 32_000 / 1e11, 2 * 2 * 5e9 / 2e9, 2 * 9e9 / 2e9))


def test_a_machine_is_found_from_its_steps() -> None:
    """Rates are those that made the times, also where one of them costs nothing."""
    where = parse_topology("cpu:8", here=True)
    found: list[dict[str, Any]] = [
        FOUND
        | {"devices": 8, "tokens_per_step": tokens, "needed_bytes": size, "wire_bytes": wire, "collective_calls": n}
        for tokens, size, wire, n in ((32, 5e8, 9e7, 7), (320, 3e8, 0, 11), (47, 5e9, 9e8, 70), (3200, 1e7, 2e8, 5))
    ]
    for links in (4e9, math.inf):
        chip = dataclasses.replace(where.chip, flops=1e11, memory_rate=2e9, links_rate=links, call=1e-3)
        made = fitted([(one, step(one, where, "none", chip).seconds) for one in found], where)
        assert (made.flops, made.memory_rate, made.call) == pytest.approx((1e11, 2e9, 1e-3), rel=1e-4)
        assert 1 / made.links_rate == pytest.approx(1 / links, abs=1e-14)


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
