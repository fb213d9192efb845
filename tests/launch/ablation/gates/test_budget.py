"""What an arm costs, by hand, and sizes that are solved for so that it costs as much as another."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from launch.ablation.gates.budget import AMOUNTS, amount, budget_of, data_of
from launch.ablation.gates.matching import matched, search
from launch.ablation.plan import config_of
from model.errors import UserError
from tests.launch.ablation.small_plan import small_plan
from tests.tiers import tiered
from train.data import open_data

D, F, T, B, V = 16, 64, 64, 4, 256  # of tests.tiny, on bytes
MATRICES = 4 * D * D + 2 * D * F + 3 * D  # one layer of RMS norms, and the last
TABLES = V * D + T * D  # with learned positions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


def test_a_budget_is_what_is_counted_by_hand(folder: Path) -> None:
    plan = small_plan(folder, shared={"model.position": "learned", "model.core": "dense", "train.steps": 12})
    found = budget_of(config_of(plan, "bare", seeds=3))
    assert (found.matrices, found.parameters) == (MATRICES, MATRICES + TABLES)
    assert found.flops_per_token == pytest.approx(6 * (4 * D * D + 2 * D * F + V * D) + 12 * T * D, rel=1e-6)
    assert (found.steps, found.tokens, found.flops) == (12, 12 * B * T, found.flops_per_token * 12 * B * T)
    layers_inputs = 4 * B // 2 * T * D
    beside = found.memory - 3 * (16 * found.parameters + layers_inputs)
    assert 0 < beside < 3 * 64  # counts, steps and keys
    assert found.minutes is None
    config = config_of(plan, "bare")
    assert {name: of(config) for name, of in AMOUNTS.items()} == {name: amount(found, name) for name in AMOUNTS}


def test_text_that_was_edited_is_read_again(tmp_path: Path) -> None:
    config = config_of(small_plan(tmp_path), "bare")
    before = data_of(config)
    assert data_of(config) is before
    (tmp_path / "text/00.txt").write_text("edited\n")
    after = data_of(config).fingerprint
    assert after == open_data(config.data).fingerprint != before.fingerprint


@pytest.mark.rest
def test_a_step_is_timed(folder: Path) -> None:
    found = budget_of(config_of(small_plan(folder), "bare", seeds=3), measured=True)
    assert found.seconds is not None
    assert found.minutes == pytest.approx(12 * found.seconds / 60)
    assert 0 < found.seconds < 10


CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("mlp_width", "parameters", {"model.mlp": "swiglu"}, "model.mlp_width"),
    ("width", "parameters", {"model.mlp_width": 80}, "model.width"),
    ("depth", "parameters", {"model.mlp_width": 96}, "model.num_layers"),
    ("steps", "flops", {"model.num_layers": 6}, "train.steps"),
    ("mlp_width", "flops", {"model.num_kv_heads": 1}, "model.mlp_width"),
]


@pytest.mark.parametrize(
    ("match", "budget", "keys", "key"), tiered(CASES, lambda match, budget, *_: budget == "parameters"), ids=str
)
def test_a_size_is_solved_for(folder: Path, match: str, budget: str, keys: dict[str, Any], key: str) -> None:
    """The nearest: one more, and one less, are further off."""
    shared = {"model.width": 48, "model.num_layers": 4, "model.core": "dense", "train.steps": 300}
    factor = next(iter(keys))
    plan = small_plan(
        folder, shared=shared, factor=factor, arms={"a": {}, "b": keys}, match=match, budget=budget, waived={}
    )
    solved, of = matched(plan), AMOUNTS[budget]
    target, found = (of(config_of(solved, arm)) for arm in "ab")
    assert abs(found / target - 1) <= 0.01 < abs(of(config_of(plan, "b")) / target - 1)
    assert solved.factor == (factor, key)
    assert solved.hash != plan.hash
    assert matched(solved) == solved
    value, unit = solved.arms["b"][key], 4 if match == "width" else 1
    for other in (int(value) - unit, int(value) + unit):
        beside = dataclasses.replace(solved, arms={"a": {}, "b": {**keys, key: other}})
        assert abs(of(config_of(beside, "b")) - target) >= abs(found - target)


def test_what_cannot_be_matched_is_refused_with_the_nearest(folder: Path) -> None:
    shared = {"model.width": 48, "model.num_layers": 3}
    arms = {"a": {}, "b": {"model.mlp_width": 400}}
    plan = small_plan(folder, shared=shared, factor="model.mlp_width", arms=arms, match="depth", budget="parameters")
    layer, table = 4 * 48 * 48 + 2 * 48, V * 48 + 48
    base, two = 3 * (layer + 8 * 48 * 48) + table, 2 * (layer + 2 * 48 * 400) + table
    with pytest.raises(UserError, match=rf"of b within 1 % of the baseline's {base:.6g}; the nearest is 2.*{two:.6g}"):
        matched(plan)
    tokens = small_plan(folder, shared=shared, factor="model.mlp_width", arms=arms, match="depth", budget="tokens")
    assert matched(tokens) == tokens


def test_a_search_needs_few_calls() -> None:
    for rises in (lambda n: 7.0 * n + 3, lambda n: 2.0 * n * n + n, lambda n: float(n // 5)):
        calls: list[int] = []

        def found(n: int, rises: Any = rises, calls: list[int] = calls) -> float:
            calls.append(n)
            return float(rises(n))

        best, value = search(found, rises(137), (1, 50, 10_000))
        assert value == rises(137) == rises(best)
        assert len(calls) < 14
    assert search(lambda n: float(n), 500, (1, 2, 64)) == (64, 64)
    assert search(lambda n: float(n), 0, (3, 9, 64)) == (3, 3)
