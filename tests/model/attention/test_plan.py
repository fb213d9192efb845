"""Plans of blocks: every pair that a mask shows is in one of them, once, whatever sizes they have."""

import numpy as np
import pytest

from model.attention import Mask, parse_mask, segments
from model.attention.cores.plan import block_sizes, make_plans

MASKS = [
    "full",
    "causal",
    "causal & window(1)",
    "causal & window(70)",
    "window(40)",
    "causal & chunked(300)",
    "causal & (window(64) | sink_columns(3))",
    "causal & dilated(3)",
    "prefix(5) | causal",
    "causal & ~window(100)",
    "~full",
]
SIZES = [(1, 1), (7, 131), (131, 7), (256, 256), (257, 600), (1024, 1024), (1031, 1031), (2048, 300), (2304, 2304)]


def covered(mask: Mask, T: int, S: int) -> np.ndarray:
    """How many blocks have each place."""
    counts_TS = np.zeros((T + 1024, S + 1024), int)
    for plan in make_plans(mask, T, S):
        for kind, blocks in (("full", plan.full), ("mixed", plan.mixed)):
            for i0, j0 in blocks:
                assert kind == "mixed" or mask.block(i0, j0, plan.rows, plan.columns).all()
                assert not plan.whole or j0 + plan.columns <= S
                counts_TS[i0 : i0 + plan.rows, j0 : j0 + plan.columns] += 1
    return counts_TS[:T, :S]


@pytest.mark.parametrize("text", MASKS)
def test_what_a_mask_shows_is_computed_once(text: str) -> None:
    mask = parse_mask(text)
    for T, S in SIZES:
        counts_TS, shown_TS = covered(mask, T, S), np.broadcast_to(mask.block(0, 0, T, S), (1, 1, T, S))[0, 0]
        assert (counts_TS[shown_TS] == 1).all(), (T, S)
        assert (counts_TS <= 1).all(), (T, S)


def test_what_arrays_hide_is_computed_once() -> None:
    for length in (256, 1280):
        mask = parse_mask("causal & window(70)") & segments(np.zeros((1, length), int))
        shown_TS = parse_mask("causal & window(70)").block(0, 0, length, length)[0, 0]
        assert (covered(mask, length, length)[shown_TS] == 1).all()


def test_few_places_are_computed_in_vain() -> None:
    def share(text: str, length: int) -> float:
        return sum(plan.places for plan in make_plans(parse_mask(text), length, length)) / length**2

    assert share("causal", 256) == 0.625
    assert share("causal", 1024) == 0.5625
    assert share("causal", 4096) <= 0.5625
    assert share("causal & window(256)", 4096) == 320 / 4096
    assert share("causal & window(256)", 1024) < 384 / 1024
    assert make_plans(parse_mask("~full"), 64, 64) == []


def test_blocks_are_as_large_as_pays() -> None:
    """A mask that fills most of its blocks has large ones, whose products a CPU's cores share."""
    assert block_sizes(parse_mask("full"), 4096, 4096) == (512, 256)
    assert block_sizes(parse_mask("causal"), 4096, 4096) == (512, 256)
    assert block_sizes(parse_mask("causal & window(1024)"), 4096, 4096) == (256, 256)
    assert block_sizes(parse_mask("causal & dilated(3)"), 4096, 4096) == (128, 128)
    assert block_sizes(parse_mask("causal") & segments(np.zeros((1, 4096), int)), 4096, 4096) == (256, 256)
