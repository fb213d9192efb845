"""Each gate closes on what it is for, is waived by its name, and says what to do."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from launch.ablation.gates.budget import Budget
from launch.ablation.gates.rules import (
    NAMES,
    Gate,
    check_waivers,
    failed,
    gate_of_causality,
    gates_of_budgets,
    gates_of_looks,
    gates_of_plan,
    refuse,
    undeclared,
)
from launch.ablation.plan import Plan, make_plan
from model.errors import UserError
from tests.launch.ablation.small_plan import VALUES

COST = Budget(1000, 500, 10.0, 4000, 100, 1)


def plan_of(**changes: Any) -> Plan:
    return make_plan("small", {**VALUES, **changes})


def budgets(**changes: Any) -> list[Gate]:
    plan = plan_of(budget=changes.pop("budget", "parameters"))
    return gates_of_budgets(plan, {"scaled": COST, "bare": dataclasses.replace(COST, **changes)})


def looks(*earlier: dict[str, Any], taken: int = 8) -> list[Gate]:
    return gates_of_looks(plan_of(), [{"plan": "other", "smallest": "0.01", **one} for one in earlier], taken)


def test_the_same_size_may_be_written_otherwise() -> None:
    seeds = [*range(8)]
    assert all(gate.passed for gate in looks({"seeds": seeds, "smallest": "1e-2"}, {"seeds": seeds, "smallest": 0.01}))


SHORT = {"seeds": range(5), "looks": (5,)}
THREE = {"arms": {"a": {}, "b": {"model.scale": 1.0}, "c": {"model.scale": 2.0}}, "seeds": range(6), "looks": (6,)}
LONGER = {"arms": {"scaled": {}, "bare": {"model.scale": 1.0, "train.steps": 1001}}}
CLOSED: list[tuple[str, Callable[[], list[Gate]], str]] = [
    ("keys", lambda: gates_of_plan(plan_of(**LONGER)), "bare differs in train.steps, which is not the factor"),
    ("seeds", lambda: gates_of_plan(plan_of(**SHORT)), "5 seeds cannot reach alpha=0.05 with 1 contrast; take 6"),
    ("seeds", lambda: gates_of_plan(plan_of(**THREE)), "6 seeds cannot reach alpha=0.05 with 2 contrasts; take 7"),
    ("phases", lambda: gates_of_plan(plan_of(tune_seeds=(7, 200))), "seeds 7 are in two of"),
    ("phases", lambda: gates_of_plan(plan_of(pilot_seeds=(0, 9))), "seeds 0 are in two of"),
    ("phases", lambda: gates_of_plan(plan_of(pilot_seeds=(200,))), "seeds 200 are in two of"),
    (
        "grids",
        lambda: gates_of_plan(plan_of(learning_rates={"scaled": (1e-3, 3e-3), "bare": (1e-3, 3e-3, 1e-2)})),
        "(scaled: 0.001, 0.003; bare: 0.001, 0.003, 0.01): give all arms the same",
    ),
    ("budget", lambda: budgets(parameters=1011), "(bare has +1.1%)"),
    ("budget", lambda: budgets(budget="flops", tokens=3950), "(bare has -1.2%)"),
    ("budget", lambda: budgets(budget="tokens", tokens=3950), "(bare has -1.2%)"),
    ("causality", lambda: [gate_of_causality({"a": None, "b": 7})], "b sees place 7 or later from before it"),
    ("looks", lambda: looks(taken=7), "looked at after 7, and the plan declares (8,)"),
    ("looks", lambda: looks({"seeds": [0, 1, 2, 3]}), "looked at after 4, and the plan declares (8,)"),
    ("smallest", lambda: looks({"seeds": [*range(8)], "smallest": "0.02"}), "D was 0.02 at a look at these seeds"),
    ("missing", lambda: looks({"seeds": [0, 1, 2, 3, 4, 5, 6, 9]}), "seeds 9 were looked at with others of these"),
]
OPEN: list[Callable[[], list[Gate]]] = [
    lambda: gates_of_plan(plan_of()),
    lambda: gates_of_plan(plan_of(seeds=range(6), looks=(6,))),
    lambda: budgets(parameters=1009, tokens=1),
    lambda: budgets(budget="flops", flops_per_token=20.0, tokens=2000),
    lambda: [gate_of_causality({"a": None})],
    lambda: looks(),
    lambda: looks({"seeds": [100, 101], "smallest": "0.02"}),  # other seeds
    lambda: looks({"seeds": [0, 1], "smallest": "0.02", "plan": plan_of().hash}),  # its own
]


@pytest.mark.parametrize(("name", "gates", "words"), CLOSED)
def test_a_gate_closes_and_is_waived_by_its_name(name: str, gates: Callable[[], list[Gate]], words: str) -> None:
    closed = [gate for gate in gates() if not gate.passed]
    assert [gate.name for gate in closed] == [name]
    assert words in closed[0].text
    with pytest.raises(UserError, match=rf"plan small: gate {name}: .*waived=\{{'{name}': '...'\}}"):
        refuse(plan_of(), closed)
    waiving = plan_of(waived={name: "so it is asked"})
    check_waivers(waiving)
    refuse(waiving, closed)
    assert failed(waiving, closed) == []


@pytest.mark.parametrize("gates", OPEN)
def test_what_keeps_the_rules_is_let_through(gates: Callable[[], list[Gate]]) -> None:
    assert [gate for gate in gates() if not gate.passed] == []


def test_a_waiver_of_no_gate_is_refused() -> None:
    with pytest.raises(UserError, match="waived: buget is no gate; the nearest is budget"):
        check_waivers(plan_of(waived={"buget": "so"}))


def test_the_first_of_several_is_told_and_the_others_named() -> None:
    gates = [Gate("keys", False, "so"), Gate("seeds", True, "ok"), Gate("budget", False, "off")]
    with pytest.raises(UserError, match=r"gate keys: so \(and gates budget\): "):
        refuse(plan_of(), gates)
    with pytest.raises(UserError, match="gate budget: off: "):
        refuse(plan_of(waived={"keys": "why"}), gates)


def test_every_gate_is_tested() -> None:
    """Here, or with the programs, pairs and phases that it speaks of."""
    others = {"init", "batches", "dropout", "evaluation", "sources"}  # test_pairs.py
    others |= {"code", "packages", "text", "device", "prng", "windows", "last", "missing", "edge"}  # test_cheats.py
    assert {name for name, *_ in CLOSED} | others == {*NAMES}


def test_keys_that_only_one_family_has_belong_to_the_family() -> None:
    """Those that both have do not, whatever their defaults are."""
    attention = {"family": "encoder_decoder", "model.mlp_width": 77}
    plan = plan_of(base="recurrent:parity", factor="family", arms={"recurrence": {}, "attention": attention})
    assert undeclared(plan) == []
    deeper = plan_of(
        base="recurrent:parity",
        factor="family",
        arms={"recurrence": {}, "attention": attention | {"model.num_layers": 2, "train.steps": 7}},
    )
    assert undeclared(deeper) == [("attention", ["model.num_layers", "train.steps"])]
    other = plan_of(factor="model.scale", arms={"scaled": {}, "bare": {"family": "recurrent", "model.tied": False}})
    assert "model.mask" in dict(undeclared(other))["bare"]
