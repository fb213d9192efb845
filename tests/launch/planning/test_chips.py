"""Slices by their names, and what is none."""

import pytest

from launch.planning.chips import CHIPS, example, parse_topology
from model import UserError


@pytest.mark.parametrize(
    ("text", "chips", "devices", "hosts", "kind"),
    [
        ("v4:2x2x4", 16, 16, 4, "v4-32"),
        ("v5e:16x16", 256, 256, 64, "v5litepod-256"),
        ("v5p:4x4x4", 64, 64, 16, "v5p-128"),
        ("v6e:4x4", 16, 16, 4, "v6e-16"),
        ("v6e:2x4", 8, 8, 1, "v6e-8"),  # one machine of eight chips, and no slice of two
    ],
)
def test_a_slice_is_told_in_all_ways(text: str, chips: int, devices: int, hosts: int, kind: str) -> None:
    """As Google Cloud's pages of each TPU have them: v4 and v5p count cores."""
    one = parse_topology(text)
    assert (one.chips, one.devices, one.hosts, one.accelerator_type) == (chips, devices, hosts, kind)
    assert one.topology == text
    assert parse_topology(text, 3).devices == 3 * devices


def test_ironwood_has_two_devices_a_chip_and_no_machines() -> None:
    one = parse_topology("tpu7x:4x4x4")
    assert (one.chips, one.devices) == (64, 128)
    with pytest.raises(UserError, match=r"there are no TPU VMs of tpu7x, which GKE alone serves; take launch.manifest"):
        assert one.accelerator_type


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("v5:4x4", "'v5' is none of v4, v5e, v5p, v6e, tpu7x; the nearest is v5"),
        ("h100:8", "'h100' is none of"),
        ("v5e-8", "the nearest is v5e:2x4."),
        ("v5litepod-256", "the nearest is v5e:16x16."),
        ("v5p-128", "the nearest is v5p:4x4x4."),  # cores
        ("v6e-7", "the nearest is v6e:4x4."),
        ("v5e:16", "slices of v5e have 2 sizes, such as v5e:4x4."),
        ("v5p:4x4", "slices of v5p have 3 sizes, such as v5p:4x4x4."),
        ("v5e:0x4", "slices of v5e have 2 sizes"),
        ("v5e:\u00b2x4", "slices of v5e have 2 sizes"),
        ("v5e", "slices of v5e have 2 sizes"),
        ("v5e:3x5", "there are no such slices of v5e; the nearest is v5e:4x4."),
        ("v6e:1x3", "there are no such slices of v6e; the nearest is v6e:2x4."),
        ("v6e:8x4", "there are no such slices of v6e; the nearest is v6e:"),
        ("v5p:4x4x6", "there are no such slices of v5p; the nearest is v5p:4x4x"),
        ("v5p:1x1x7", "there are no such slices of v5p; the nearest is v5p:2x2x4."),
        ("", "'' is none of"),
    ],
)
def test_what_is_no_slice_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_topology(text)
    assert str(refused.value).startswith(f"--topology={text}: ")
    assert sentence in str(refused.value)


def test_there_is_at_least_one_slice() -> None:
    with pytest.raises(UserError, match=r"^--slices=0 must be at least 1"):
        parse_topology("v5e:4x4", 0)
    with pytest.raises(UserError, match=r"^--slices=2: cpu:8 is one machine; set it to 1"):
        parse_topology("cpu:8", 2, here=True)
    with pytest.raises(UserError, match=r"^--topology=cpu:2x4: slices of cpu have one size, such as cpu:4"):
        parse_topology("cpu:2x4", here=True)
    with pytest.raises(UserError, match="'cpu' is none of v4, v5e, v5p, v6e, tpu7x; "):  # no launcher makes one
        parse_topology("cpu:8")
    assert all(parse_topology(f"{name}:{example(name)}").chips for name in CHIPS)
