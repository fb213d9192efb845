"""Where parameters lie changes nothing that is learned, and is what the rules and the table of a config say."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from model.errors import UserError
from tests.small import compiled_step, losses, random_batches, small_experiment
from tests.train.test_sharding import DROPOUT, STEPS, losses_alone, mesh_keys
from train.devices.memory import placements

TABLE = "*.kernel=embed:fsdp+replica, embed.*=vocab:tensor+fsdp & embed:replica, *.down.*=whole, *norm*=norm:context"
PLACED: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 2, 2, 1), {"mesh.place": TABLE}),
    ((1, 2, 2, 2), {"mesh.place": TABLE, "mesh.rules": "replicated"}),
    ((2, 4, 1, 1), {"mesh.rules": "replicated"}),
    ((2, 2, 2, 1), {"mesh.rules": "replicated"}),
    ((1, 2, 1, 4), {"mesh.rules": "replicated"}),
    ((2, 2, 2, 1), {"mesh.rules": "optimizer"}),
    ((1, 8, 1, 1), {"mesh.rules": "optimizer", "train.accumulate": 3}),
]


@pytest.mark.rest
@pytest.mark.parametrize(("shape", "keys"), PLACED, ids=str)
def test_the_losses_are_the_same_wherever_parameters_lie(shape: tuple[int, ...], keys: dict[str, Any]) -> None:
    """And there they stay."""
    experiment = small_experiment(**mesh_keys(*shape), **DROPOUT, **keys)
    step = compiled_step(experiment)
    np.testing.assert_allclose(losses(experiment, step, random_batches(experiment, STEPS)), losses_alone(), rtol=1e-5)
    after = step.output_shardings[0]
    same = jax.tree.map(
        lambda leaf, where: leaf.sharding.is_equivalent_to(where, leaf.ndim), experiment.abstract, after
    )
    assert all(jax.tree.leaves(same))


def test_parameters_lie_where_a_table_says() -> None:
    """The last entry that matches says all; replica=2 x fsdp=2 x tensor=2, of 4 bytes a number, moments as they."""
    keys = mesh_keys(2, 2, 2, 1)
    found = {one.name: one for one in placements(small_experiment(**keys, **{"mesh.place": TABLE}))}
    assert {name.replace("stack.blocks.", ""): (one.bytes // 4, one.spec) for name, one in found.items()} == {
        "embed.embedding": (56 * 48 // 8, P(("tensor", "fsdp"), "replica")),
        "norm.scale": (48, P("context")),
        **{
            f"attention.{name}.kernel": (2 * 48 * 48 // 4, P(None, ("fsdp", "replica"), None, None))
            for name in ("query", "key", "value")
        },
        "attention.output.kernel": (2 * 48 * 48 // 4, P(None, None, None, ("fsdp", "replica"))),
        "attention_norm.scale": (2 * 48, P(None, "context")),
        "mlp.up.kernel": (2 * 48 * 40 // 4, P(None, ("fsdp", "replica"), None)),
        "mlp.down.kernel": (2 * 48 * 40, P(None, None, None)),
        "mlp_norm.scale": (2 * 48, P(None, "context")),
    }
    assert found["stack.blocks.mlp.down.kernel"].axes == ("layers", "mlp", "embed")
    assert found["stack.blocks.mlp.down.kernel"].shape == (2, 40, 48)
    experiment = small_experiment(**keys, **{"mesh.place": TABLE})
    split = [
        sorted((leaf.shape, str(leaf.sharding.spec)) for leaf in jax.tree.leaves(tree) if leaf.ndim > 1)
        for tree in (experiment.abstract.params, experiment.abstract.opt_state)
    ]
    assert split[1] == sorted(split[0] * 2)


def test_parameters_are_whole_by_rules_that_say_so() -> None:
    """On each device of replica and fsdp; tensor splits them as it does what is made of them."""
    for shape, ways in (((2, 4, 1, 1), 1), ((1, 2, 4, 1), 4)):
        for one in placements(small_experiment(**mesh_keys(*shape), **{"mesh.rules": "replicated"})):
            assert one.bytes == 4 * np.prod(one.shape) // (1 if "norm" in one.axes else ways), one


def test_moments_are_split_where_parameters_are_whole() -> None:
    """They lie as those of fsdp do, where rules say so (Rajbhandari et al. 2020, section 5.1)."""
    split, moments, whole = (
        small_experiment(**mesh_keys(1, 8, 1, 1), **{"mesh.rules": rules})
        for rules in ("fsdp", "optimizer", "replicated")
    )
    places = [jax.tree.map(lambda leaf: leaf.sharding.spec, one.abstract) for one in (split, moments, whole)]
    told = [[(one.spec, one.moments) for one in placements(each)] for each in (split, moments, whole)]
    assert all(spec == of_moments for spec, of_moments in told[0] + told[2])
    assert told[1] == [(spec, of) for (spec, _), (_, of) in zip(told[2], told[0], strict=True)]
    assert places[1].params == places[2].params
    assert places[1].opt_state == places[0].opt_state
    assert places[0].params != places[2].params


def test_seeds_are_an_axis_in_front() -> None:
    population = small_experiment(**mesh_keys(2, 2, 1, 1), **{"train.seeds": 4, "mesh.place": "norm.scale=norm:fsdp"})
    (norm,) = [one for one in placements(population) if one.name == "norm.scale"]
    spec = P("replica", "fsdp")
    assert norm == ("norm.scale", (4, 48), spec, 4 * 4 * 48 // 4, ("seeds", "norm"), spec)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("embed.embeding=whole", "'embed.embeding=whole' matches no parameter; the nearest is 'embed.embedding'."),
        (
            "norm.scale=whole, embed.*=vocab",
            "'embed.*=vocab' cannot be read; write pattern=axis:fsdp, more axes with '&' and '+', or pattern=whole, "
            "and commas between them.",
        ),
        (
            "*.up.*=heads:tensor",
            "'*.up.*=heads:tensor': no such parameter has an axis 'heads'; there are: layers, embed, mlp.",
        ),
        (
            "*.up.*=mlp:data",
            "'*.up.*=mlp:data': 'data' is no axis of the mesh, which has: replica, fsdp, tensor, context.",
        ),
        (
            "*.up.*=mlp:fsdp & embed:fsdp",
            "'*.up.*=mlp:fsdp & embed:fsdp' gives an axis of the mesh twice; give each once.",
        ),
        (
            "*.up.*=layers:fsdp+tensor",
            "'*.up.*=layers:fsdp+tensor': layers=2 of stack.blocks.mlp.up.kernel does not divide evenly over the "
            "mesh's fsdp=2 x tensor=2; change the entry or --config.mesh.*.",
        ),
    ],
)
def test_a_table_that_cannot_be_is_refused(table: str, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(f'--config.mesh.place: {sentence}')}$"):
        small_experiment(**mesh_keys(2, 2, 2, 1), **{"mesh.place": table})


def test_an_axis_that_carries_seeds_splits_no_parameter() -> None:
    with pytest.raises(UserError, match="'replica' carries the seeds; of the mesh are left: fsdp, tensor, context.$"):
        small_experiment(**mesh_keys(2, 1, 1, 1), **{"train.seeds": 2, "mesh.place": "norm.*=norm:replica"})
