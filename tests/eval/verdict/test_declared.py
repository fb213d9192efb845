"""What cannot be declared, and the fewest seeds."""

import dataclasses
import re
from typing import Any

import pytest

from eval.verdict.declared import Contrast, Declared, least_seeds
from model.errors import UserError

ARM = Contrast("arm", ("arm",), ("base",))
FINE = Declared("Does it matter?", (ARM,), "val/loss", "lower", 0.01)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"contrasts": ()}, "name at least one arm"),
        ({"contrasts": (ARM, ARM)}, "names of their own"),
        ({"contrasts": (Contrast("same", ("a",), ("a",)),)}, "one arm minus another"),
        ({"contrasts": (Contrast("odd", ("a", "b"), ("c",)),)}, "one arm minus another"),
        ({"contrasts": (Contrast("none", (), ()),)}, "one arm minus another"),
        ({"direction": "up"}, "'lower' or 'higher'"),
        ({"smallest": 0.0}, "above 0"),
        ({"smallest": float("nan")}, "above 0"),
        ({"smallest": float("inf")}, "from 1e-130 to 1e+150"),
        ({"smallest": 1e-200}, "from 1e-130 to 1e+150"),
        ({"alpha": 0.0}, "above 0"),
        ({"alpha": 0.5}, "at most 0.2"),
        ({"alpha": 1e-5, "looks": (24,)}, "alpha=1e-05 must be at least 3.1e-05"),
        ({"looks": ()}, "one number of seeds"),
        ({"looks": (1,)}, "from 2"),
        ({"looks": (3, 8)}, "from 4"),
        ({"looks": (8, 8)}, "ascending"),
        ({"looks": (16, 8)}, "ascending"),
        ({"looks": (8, 12, 16)}, "or two"),
        ({"looks": (8, 64)}, "to 40"),
        ({"looks": (8.0,)}, "one number of seeds"),
        ({"success": float("inf")}, "finite threshold"),
        ({"success": 1.0, "smallest": 1.5}, "difference of rates"),
        ({"success": 1.0, "looks": (8, 16)}, "no first look"),
        ({"success": 1.0, "contrasts": (Contrast("i", ("a", "b"), ("c", "d")),)}, "interaction"),
    ],
)
def test_what_cannot_be_judged_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        dataclasses.replace(FINE, **changed)


def test_the_fewest_seeds_by_which_holm_and_the_exact_test_reach_alpha() -> None:
    assert [least_seeds(arms, 0.05) for arms in (1, 3, 10)] == [6, 7, 9]
    for arms in range(1, 30):
        n = least_seeds(arms, 0.05)
        assert 2 / 2**n * arms <= 0.05 < 2 / 2 ** (n - 1) * arms
