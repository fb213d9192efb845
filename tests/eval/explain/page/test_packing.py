"""Packed maps are read back within half a quantum, and what they take is within the budget."""

import json

import numpy as np
import pytest

from eval.explain.page.packing import FULL, FULL_BYTES, embedded, packed
from eval.explain.page.quanta import is_causal, pack, pack_largest, pooled
from model.errors import UserError
from tests.eval.explain.page.made import across, content, read, read_largest, weights

ROUNDING = 1e-6  # of float32


@pytest.mark.parametrize(("causal", "signed"), [(True, False), (False, False), (True, True), (False, True)])
def test_a_cell_is_read_to_half_a_quantum(causal: bool, signed: bool) -> None:
    x_NTS = weights(1, 3, 7)[0] * (-1 if signed else 1) if causal else np.random.default_rng(0).normal(0, 3, (3, 7, 11))
    x_NTS = x_NTS if signed else np.abs(x_NTS)
    x_NTS[1, 4], x_NTS[2, 3] = 0, x_NTS[2, 3] * 1e-7  # nothing at all, and next to nothing
    found_NTS, half_NT = read(pack(x_NTS, causal, signed), *x_NTS.shape, causal, signed)
    assert (np.abs(found_NTS - x_NTS) <= half_NT[:, :, None] * (1 + ROUNDING)).all()
    assert (half_NT <= np.abs(x_NTS).max(2) / (127 if signed else 255) / 2 * (1 + 2**-7)).all()
    assert np.abs(found_NTS).max() > 0
    assert not half_NT[1, 4]


def test_the_largest_cells_of_a_row_are_kept_and_no_other_is_larger() -> None:
    x_NTS, k = np.random.default_rng(0).standard_normal((1, 5, 13)), 3
    at_Tk, found_Tk, half_T = read_largest(pack_largest(x_NTS, k, signed=True), 5, k, signed=True)
    for row in range(5):
        assert set(at_Tk[row]) == set(np.argsort(-np.abs(x_NTS[0, row]))[:k])
        assert np.abs(found_Tk[row] - x_NTS[0, row, at_Tk[row]]).max() <= half_T[row] * (1 + ROUNDING)
        others = np.delete(np.abs(x_NTS[0, row]), at_Tk[row])
        assert others.max() <= abs(found_Tk[row, -1]) + half_T[row]


def test_a_pooled_map_holds_the_largest_of_each_block() -> None:
    x_NTS = np.random.default_rng(0).standard_normal((2, 131, 67))
    found = pooled(x_NTS, 8)
    assert found.shape == (2, 8, 8)
    rows, columns = np.arange(131) * 8 // 131, np.arange(67) * 8 // 67
    for down in range(8):
        for over in range(8):
            block = x_NTS[0][rows == down][:, columns == over]
            assert found[0, down, over] == block.flat[np.abs(block).argmax()]
    np.testing.assert_array_equal(pooled(x_NTS, 131), x_NTS)


def test_a_map_is_causal_only_if_all_are() -> None:
    x_LHTS = weights(2, 3, 5)
    assert is_causal(x_LHTS)
    x_LHTS[1, 2, 0, 4] = 1e-9
    assert not is_causal(x_LHTS)


def test_512_tokens_of_144_heads_take_what_is_said() -> None:
    """37.7M weights: all of them pooled, twelve whole, and of the others the 5 largest of each row."""
    one = content([f"t{at}" for at in range(512)], 12, 12, flow=None)
    room = 4_300_000
    found = packed(one, room)
    (place,) = found.data["places"]
    assert len(embedded(found.data)) <= room
    assert sum(map(len, place["full"]["data"])) <= FULL_BYTES
    assert len(place["full"]["heads"]) == FULL
    assert place["largest"]["k"] == 5
    assert "132 of the 144 heads: of each row of them the 5 largest" in found.left_out[-1]
    x_LHTS = one.weights["stack.attention"]
    importance = one.statistics["stack.attention"]["importance"]
    assert place["full"]["heads"][0] == [*np.unravel_index(importance.argmax(), importance.shape)]
    for (layer, head), text in zip(place["full"]["heads"][:2], place["full"]["data"], strict=False):
        own, half_NT = read(text, 1, 512, 512, causal=True)
        assert (np.abs(own[0] - x_LHTS[layer, head]) <= half_NT[0][:, None] * (1 + ROUNDING)).all()
    layer, head = place["largest"]["heads"][7]
    at_Tk, found_Tk, half_T = read_largest(place["largest"]["data"][7], 512, 5)
    own_Tk = np.take_along_axis(x_LHTS[layer, head], at_Tk.astype(int), 1)
    assert (np.abs(own_Tk - found_Tk) <= half_T[:, None] * (1 + ROUNDING)).all()


def test_heads_are_chosen_and_what_does_not_fit_is_named() -> None:
    one = content([f"t{at}" for at in range(300)], 2, 3, flow=None, products=None, rollout={})
    chosen = ("stack.attention", 1, 0), ("stack.attention", 0, 2)
    (place,) = packed(one, 4_000_000, chosen).data["places"]
    assert place["full"]["heads"] == [[1, 0], [0, 2]]
    overview = len(embedded(packed(one, 50_000).data))
    small = packed(one, overview + 70_000, chosen)
    assert small.data["places"][0]["full"]["heads"] == [[1, 0]]
    assert "There was no room for stack.attention.0.2." in small.left_out[-1]
    with pytest.raises(
        UserError, match=r"^--budget: of the overview of all heads [0-9,]+ bytes do not fit, for each input"
    ):
        packed(one, 9_000)
    with pytest.raises(UserError, match=r"--heads=stack.attention.2.0 is no head of this model: .* 2 layers of 3"):
        packed(one, 4_000_000, [("stack.attention", 2, 0)])


def test_pairs_have_maps_of_their_own_shapes() -> None:
    data = json.loads(embedded(packed(across(), 1_000_000).data))
    shapes = {one["name"]: (one["pooled"]["down"], one["pooled"]["across"]) for one in data["places"]}
    assert shapes == {"encoder.attention": (11, 11), "decoder.cross": (7, 11), "decoder.attention": (7, 7)}
    assert [one["causal"] for one in data["places"]] == [False, False, True]


def test_arrays_of_other_sizes_than_the_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"maps of stack.attention are \(5, 5\), and its tokens \(4, 4\)"):
        content(list("abcd"), weights={"stack.attention": weights(1, 2, 5)})
