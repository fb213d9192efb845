"""Which core a run attends with: chosen before anything is traced, and compared with the reference before it learns."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.attention import Request, Scores
from model.attention.contract import Choice
from model.attention.cores.dense import dense
from model.attention.cores.table import CORES, select_core
from model.attention.selfcheck import errors, judge
from model.cycles import Cycle
from model.families import Model, ModelConfig, Writer
from train.devices.machine import compiler_options
from train.flops import attention_flops

_SLICE = 256  # queries and keys of the check, at most


class Site(NamedTuple):
    """What the layers at one place of the unit ask of attention, and who computes it."""

    request: Request
    choice: Choice


def choose_attention(model: Model, config: ModelConfig, rows: int) -> Cycle[Site]:
    """What training asks of attention in each layer of the unit, for `rows` rows of the longest sequence on the ambient
    mesh, and who computes it; `model` may be abstract.

    Raises:
        UserError: a core that is named refuses.
    """
    heads, kv_heads, T = config.num_heads, config.num_kv_heads or config.num_heads, config.max_length
    q_BTHK, k_BSGK = (jax.ShapeDtypeStruct((rows, T, n, config.K), config.dtype) for n in (heads, kv_heads))
    ids_BT = jax.ShapeDtypeStruct((rows, T), jnp.int32)
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    graphdef, params = nnx.split(model)

    def scores(params: Any, ids_BT: jax.Array, keys_B: jax.Array) -> list[Scores]:
        return nnx.merge(graphdef, params).attention_scores((ids_BT, ids_BT, ids_BT), keys_B)

    asked = jax.eval_shape(scores, params, ids_BT, keys_B)

    def site(place: int) -> Site:
        request = Request.of(q_BTHK, k_BSGK, k_BSGK, asked[place])
        return Site(request, select_core(config.cycles["core"][place], request))

    return places(config).map(site)


def places(config: ModelConfig) -> Cycle[int]:
    """For each place of the unit, the first one whose layers are equal to its own."""
    alike = [config.at(place) for place in range(config.unit)]
    return Cycle(tuple(alike.index(one) for one in alike))


def check_attention(config: ModelConfig, sites: Cycle[Site], key: jax.Array) -> Cycle[dict[str, float]]:
    """How far each chosen core is from its reference on this device, on rows of two packed documents of 256 tokens in
    all; of one that has none, nothing.

    Two rows for each part of the batch, with borders of their own, and the mask, bias, dropout, heads and dtype of the
    run, with fresh parameters; see `model.attention.selfcheck`. What only shows in longer sequences is left to the
    tests. Runs inside of `placed(mesh, rules)`.

    Raises:
        UserError: an error is beyond the tolerance of the dtype.
    """
    request = sites[0].request
    B, C = 2 * request.ways["batch"], request.ways["length"]
    # A length that devices share is cut into two parts for each, where the run's is.
    pieces = 1 if C == 1 else 2 * C if request.T % (2 * C) == 0 else C
    T = max(min(request.T, _SLICE) // pieces, 1) * pieces
    borders_B1 = np.maximum(T // 2 - 1 - np.arange(B) % 2 * (T // 4), 1)[:, None]

    def run(key: jax.Array) -> dict[int, dict[str, jax.Array]]:
        places_1T = jnp.arange(T)[None]
        ids_BT = (places_1T >= borders_B1).astype(jnp.int32)
        positions_BT = places_1T - ids_BT * borders_B1
        # Of the model only bias, sinks and a core's own parameters are used; XLA makes nothing else.
        model = config.build(nnx.Rngs(params=jax.random.fold_in(key, 0)))
        keys_B = jax.random.split(jax.random.fold_in(key, 1), B)
        scores = model.attention_scores((ids_BT, ids_BT, positions_BT), keys_B)
        sizes, key = (B, T, request.H, request.G, request.K), jax.random.fold_in(key, 2)
        found = {}
        for place in places(config).values:
            core, given = CORES[sites[place].choice.name], (scores[place], sizes, config.dtype, key)
            call: Any = model.stack.attention(place).core or core.call
            reference = dense if core.is_softmax else core.reference
            found[place] = errors(call, *given, reference) if callable(reference) else {}
        return found

    checked = jax.jit(run, compiler_options=compiler_options(request.platform))
    found = jax.tree.map(float, jax.device_get(checked(key)))
    for place, wrong in found.items():
        judge(sites[place].choice.name, wrong, config.dtype, _reference(sites[place].choice.name))
    return places(config).map(found.__getitem__)


def cache_bytes(config: ModelConfig) -> Cycle[int]:
    """The bytes that one layer keeps of a row of the longest sequence while it decodes, at each place of the unit."""
    T = config.max_length
    model = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    if not isinstance(model, Writer):
        return Cycle((0,) * config.unit)
    return jax.eval_shape(lambda: model.init_cache(1, T)).layer_bytes


def described(asked: str, config: ModelConfig, sites: Cycle[Site], errors: Cycle[dict[str, float]]) -> dict[str, Any]:
    """What a run's passport says of attention: the core asked for, those that run, why none faster, how far each is
    from what it was compared with, what one layer keeps of a row of the longest sequence while it decodes, and what it
    computes of a token in training. Where layers differ, all of that for each place of the unit, and the sums.
    """
    kept, computed, L = cache_bytes(config), attention_flops(config), range(config.num_layers)

    def one(names: Cycle[str], sites: Sequence[Site], errors: Sequence[dict[str, float]]) -> dict[str, Any]:
        refused = {name: f"{no.reason}; {no.fix}" for site in sites for name, no in site.choice.refused.items()}
        names_of_errors = dict.fromkeys(name for error in errors for name in error)
        worst = {name: max(error[name] for error in errors if name in error) for name in names_of_errors}
        compared = {name: _reference(name) for name in names.values}
        return {"core": str(names), "refused": refused, "compared_with": compared, "self_check": worst}

    names = sites.map(lambda site: site.choice.name)
    places = [
        one(Cycle((name,)), [sites[n]], [errors[n]]) | {"cache_bytes": kept[n], "flops_per_token": computed[n]}
        for n, name in enumerate(names.values)
    ]
    sums = {"cache_bytes": sum(kept[n] for n in L), "flops_per_token": sum(computed[n] for n in L)}
    found = {"asked": asked, **one(names, sites.values, errors.values), **sums}
    return found | ({"places": places} if len(places) > 1 else {})


def compared(sites: Cycle[Site], errors: Cycle[dict[str, float]]) -> str:
    """How far all cores are from what they were compared with, in words."""
    worst: dict[str, list[float]] = {}
    for site, error in zip(sites.values, errors.values, strict=True):
        worst.setdefault(_reference(site.choice.name), []).extend(error.values())
    return ", ".join(
        f"{max(found):.0e} from {name} on this device" if found else f"compared with {name}"
        for name, found in worst.items()
    )


def _reference(name: str) -> str:
    """What the core of that name is compared with, in words."""
    if CORES[name].is_softmax:
        return "dense"
    if CORES[name].reference is None:
        return f"nothing, for {name} computes another function than dense and has no reference of its own"
    return f"{name}'s own reference"
