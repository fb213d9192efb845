"""A model that sees what it is to predict is found out, whatever hides it."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from launch.ablation.gates.causality import leak
from model.attention.edits.base import Edit, Edits, Handed, edit
from model.attention.edits.table import EDITS
from model.parameters import parameter
from tests.small import small_experiment
from tests.tiers import tiered

HONEST = [
    ({"model.core": "dense", "model.edits": "qk_norm + output_gate", "model.position": "learned", "model.bias": "t5"},),
    ({"model.core": "blockwise", "model.mask": "causal & window(5)", "data.length": 160, "model.tied": False},),
    ({"model.core": "dense", "mesh.fsdp": 2, "mesh.tensor": 2},),
]


class Peek(Edit):
    """Values that stand one place further on, as much as a gate lets through, which begins closed."""

    def __init__(self, config: object, rngs: nnx.Rngs, *, by: int, gate: int):
        super().__init__(config, rngs)  # type: ignore[arg-type]
        self.by = by
        self.gate = parameter(rngs, nnx.initializers.zeros, (1,), (None,)) if gate else None  # type: ignore[arg-type]

    def before(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array, handed: Handed
    ) -> tuple[jax.Array, jax.Array, jax.Array, Handed]:
        later_BSGK = jnp.roll(v_BSGK, -self.by, axis=1)
        share = 1.0 if self.gate is None else self.gate[...][None, None, None]
        return q_BTHK, k_BSGK, v_BSGK + share * (later_BSGK - v_BSGK), handed


def peek(by: int = 1, gate: int = 0) -> Edits:
    """Each key has the value of a later one."""
    return edit("peek", Peek, by=by, gate=gate)


@pytest.mark.parametrize("changes", tiered(HONEST, lambda changes: False))
def test_a_causal_model_is_let_through(changes: dict[str, object]) -> None:
    assert leak(small_experiment(**changes)) is None


@pytest.mark.parametrize(
    ("text", "cut"),
    tiered([("peek(1, 1)", 1), ("peek", 1), ("qk_norm + peek(15)", 1)], lambda text, cut: False),
)
def test_a_leak_is_found(monkeypatch: pytest.MonkeyPatch, text: str, cut: int) -> None:
    """Also through a gate that begins closed, and in one layer only."""
    monkeypatch.setitem(EDITS, "peek", peek)
    assert leak(small_experiment(**{"model.core": "dense", "model.edits": text})) == cut


def test_the_faintest_gradient_is_a_leak_and_none_at_all_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither from behind nor from ahead, as where a kernel has no gradient; cuts are at all places of a short text."""
    given = jnp.zeros(15).at[4].set(1e-30), jnp.ones(15)
    monkeypatch.setattr("launch.ablation.gates.causality._norms", lambda *_: given)
    assert leak(small_experiment()) == 5
    given = jnp.zeros(15), jnp.zeros(15)
    with pytest.raises(RuntimeError, match="no output depends on an input"):
        leak(small_experiment())
