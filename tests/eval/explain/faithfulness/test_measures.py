"""What is measured of maps, where all is known, and beside captum."""

import numpy as np
import pytest

from eval.explain.faithfulness.judging import dropped, joined
from eval.explain.faithfulness.measures import drawn_choices, drawn_shifts, infidelity, largest_sensitivity, tau
from eval.explain.methods.table import METHODS, Asked
from eval.explain.targets import embedded, places
from tests.eval.explain.cases import case
from tests.eval.explain.faithfulness.test_faithfulness import SHARES, asked, said

RNG = np.random.default_rng(0)


def test_sufficiency_is_that_of_a_loop() -> None:
    one, each_BT = asked(4, 43)
    real_BT = joined(places(one.inputs))
    (found_B,) = dropped(one, each_BT[None], real_BT, kept=True)
    for row in range(4):
        size, drops = int(real_BT[row].sum()), []
        for share in SHARES:
            order = sorted(range(size), key=lambda place, row=row: -each_BT[row, place])
            drops.append(said(one, row, []) - said(one, row, order[max(round(size * share), 1) :]))
        assert found_B[row] == pytest.approx(np.mean(drops), abs=1e-5)


def test_exact_maps_foretell_what_is_lost() -> None:
    one, each_BT = asked(4)
    real_BT = joined(places(one.inputs))
    taken_BNT = drawn_choices(real_BT, 11)
    assert not taken_BNT[~np.broadcast_to(real_BT[:, None], taken_BNT.shape)].any()
    maps = np.stack([each_BT, 3 * each_BT, -each_BT, RNG.random(each_BT.shape)])
    plain_MB, scaled_MB = (infidelity(one, maps, taken_BNT, scaled=scaled) for scaled in (False, True))
    lost_BN = np.einsum("BT,BNT->BN", each_BT, taken_BNT)
    np.testing.assert_allclose(plain_MB[0], 0, atol=1e-8)
    np.testing.assert_allclose(plain_MB[1], 4 * np.mean(lost_BN**2, axis=1), rtol=1e-4)
    np.testing.assert_allclose(scaled_MB[:3], 0, atol=1e-8)
    assert (scaled_MB[3] > 1e-3).all()
    assert (scaled_MB[3] <= plain_MB[3]).all()
    np.testing.assert_allclose(infidelity(one, 0 * maps[:1], taken_BNT)[0], np.mean(lost_BN**2, axis=1), rtol=1e-4)


def test_how_maps_order_tokens() -> None:
    map_BT, real_BT = RNG.random((3, 7)), np.arange(7) < np.array([[7], [5], [7]])
    other_BT = np.where(real_BT, 2 * map_BT - 1, RNG.random((3, 7)))  # padding says nothing
    np.testing.assert_allclose(tau(map_BT, other_BT, real_BT), 1)
    np.testing.assert_allclose(tau(map_BT, -other_BT, real_BT), -1)
    np.testing.assert_allclose(tau(map_BT, np.ones((3, 7)), real_BT), 0)


def test_maps_of_a_linear_model_move_as_its_vectors() -> None:
    """Of a sum, the gradient is the same everywhere, and gradient x input changes by gradient x shift."""
    one, each_BT = asked(4)
    shifts = drawn_shifts(embedded(one.model, one.inputs), 0.1, 5)
    kernel_D2, answers_B = np.asarray(one.model.kernel[...]), np.asarray(one.target.answers_BP)[:, 0]
    moved_BNT = np.einsum("BNTD,BD->BNT", shifts["embedding"], kernel_D2[:, answers_B].T)
    moved_BNT = np.where(np.asarray(one.inputs["valid_BT"])[:, None], moved_BNT, 0)
    want_B = (np.linalg.norm(moved_BNT, axis=-1) / np.linalg.norm(each_BT, axis=-1)[:, None]).max(axis=1)
    found_B = largest_sensitivity(one, METHODS["gradient_x_input"], shifts)
    np.testing.assert_allclose(found_B, want_B, rtol=1e-4)
    np.testing.assert_allclose(largest_sensitivity(one, METHODS["gradient"], shifts), 0, atol=1e-6)


@pytest.mark.rest
def test_half_precision_is_no_part_of_how_maps_move() -> None:
    """Whose steps are as long as the shifts themselves."""
    whole, half = (
        Asked.of(*case("bert-classification", **{"model.dtype": dtype})) for dtype in ("float32", "bfloat16")
    )
    shifts = drawn_shifts(embedded(whole.model, whole.inputs), 0.002, 3)
    want_B, found_B = (largest_sensitivity(one, METHODS["gradient"], shifts) for one in (whole, half))
    np.testing.assert_allclose(found_B, want_B, rtol=1e-3)


@pytest.mark.rest
@pytest.mark.parametrize(
    ("kind", "name"), [("gpt-language_model", "flow"), ("encoder_decoder-translation", "leave_one_out")]
)
def test_maps_of_every_kind_can_be_moved(kind: str, name: str) -> None:
    """Where nothing is moved nothing changes, and where something is, what changes is finite."""
    one, method = Asked.of(*case(kind)), METHODS[name]
    shifts = drawn_shifts(embedded(one.model, one.inputs), 0.02, 1)
    still_B = largest_sensitivity(one, method, {site: 0 * x for site, x in shifts.items()})
    moved_B = largest_sensitivity(one, method, shifts)
    np.testing.assert_allclose(still_B, 0, atol=1e-6)
    assert ((moved_B > 1e-5) & (moved_B < 10)).all()
