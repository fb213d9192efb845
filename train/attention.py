"""Which core a run attends with: chosen before anything is traced, and compared with the reference before it learns."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
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
from model.families.family import AttentionSite, Family
from train.devices.machine import compiler_options
from train.flops import attention_flops

_SLICE = 256  # queries and keys of the check, at most


class Chosen(NamedTuple):
    """What the layers at one place of a site's unit ask of attention, and who computes it."""

    request: Request
    choice: Choice


# For each site of a model, by its name, and each place of its stack's unit.
Attention = dict[str, Cycle[Chosen]]
Errors = dict[str, Cycle[dict[str, float]]]


def choose_attention(model: Any, config: Family, rows: int) -> Attention:
    """What training asks of attention in each layer of the unit, for `rows` rows of the longest sequence on the ambient
    mesh, and who computes it; `model` may be abstract. Where targets are shorter than sources, as a part of them, what
    serves as many keys serves the sources' keys too.

    Raises:
        UserError: a core that is named refuses.
    """
    if not config.sites:
        return {}
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    graphdef, params = nnx.split(model)

    def scores(params: Any, ids_BT: jax.Array, keys_B: jax.Array) -> dict[str, list[Scores]]:
        return nnx.merge(graphdef, params).attention_scores((ids_BT, ids_BT, ids_BT), keys_B)

    lengths = {site.queries for site in config.sites.values()}
    asked = {T: jax.eval_shape(scores, params, jax.ShapeDtypeStruct((rows, T), jnp.int32), keys_B) for T in lengths}

    def chosen(name: str, site: AttentionSite, place: int) -> Chosen:
        sizes, T = site.attention(place).sizes, site.queries
        q_BTHK, k_BSGK = (jax.ShapeDtypeStruct((rows, T, n, sizes.K), sizes.dtype) for n in (sizes.H, sizes.G))
        request = Request.of(q_BTHK, k_BSGK, k_BSGK, asked[T][name][place])
        with site.named():
            return Chosen(request, select_core(site.cores[place], request))

    return {name: site.places.map(functools.partial(chosen, name, site)) for name, site in config.sites.items()}


def with_cores(config: Family, attention: Attention) -> Any:
    """The same with a name for each core, so that what is traced is what was chosen, or an error."""
    cores: dict[str, Any] = {
        f"{site.keys}core": attention[name].map(lambda one: one.choice.name) for name, site in config.sites.items()
    }
    return dataclasses.replace(config, **cores)


def check_attention(config: Family, attention: Attention, key: jax.Array) -> Errors:
    """How far each chosen core is from its reference on this device, on rows of two packed documents of 256 tokens in
    all; of one that has none, nothing.

    Two rows for each part of the batch, with borders of their own, and the mask, bias, dropout, heads and dtype of the
    run, with fresh parameters; see `model.attention.selfcheck`. What only shows in longer sequences is left to the
    tests. Runs inside of `placed(mesh, rules)`.

    Raises:
        UserError: an error is beyond the tolerance of the dtype.
    """
    if not attention:
        return {}
    request = next(iter(attention.values()))[0].request
    B, C = 2 * request.ways["batch"], request.ways["length"]
    # A length that devices share is cut into two parts for each, where the run's is.
    pieces = 1 if C == 1 else 2 * C if request.T % (2 * C) == 0 else C
    T = max(min(request.T, _SLICE) // pieces, 1) * pieces
    borders_B1 = np.maximum(T // 2 - 1 - np.arange(B) % 2 * (T // 4), 1)[:, None]

    def run(key: jax.Array) -> dict[str, dict[int, dict[str, jax.Array]]]:
        places_1T = jnp.arange(T)[None]
        second_BT = (places_1T >= borders_B1).astype(jnp.int32)
        positions_BT = places_1T - second_BT * borders_B1
        # Of the model only bias, sinks and a core's own parameters are used; XLA makes nothing else.
        model = config.build(nnx.Rngs(params=jax.random.fold_in(key, 0)))
        keys_B = jax.random.split(jax.random.fold_in(key, 1), B)
        scores = model.attention_scores((second_BT, 1 + second_BT, positions_BT), keys_B)
        key = jax.random.fold_in(key, 2)
        found: dict[str, dict[int, dict[str, jax.Array]]] = {name: {} for name in attention}
        for name, site in config.sites.items():
            for place in site.places.values:
                request, choice = attention[name][place]
                core = CORES[choice.name]
                given = (scores[name][place], (B, T, request.H, request.G, request.K), request.dtype.name, key)
                call: Any = model.attention(name, place).core or core.call
                reference = dense if core.is_softmax else core.reference
                found[name][place] = errors(call, *given, reference) if callable(reference) else {}
        return found

    checked = jax.jit(run, compiler_options=compiler_options(request.platform))
    found = jax.tree.map(float, jax.device_get(checked(key)))
    for name, places in found.items():
        for place, wrong in places.items():
            core = attention[name][place].choice.name
            judge(core, wrong, config.dtype, _reference(core))
    return {name: site.places.map(found[name].__getitem__) for name, site in config.sites.items()}


def cache_bytes(config: Family) -> dict[str, Cycle[int]]:
    """The bytes that one layer keeps of a row of the longest sequence while it decodes, at each place of the unit of
    each site.
    """
    if not config.sites:
        return {}
    kept = nnx.eval_shape(lambda: config.build(nnx.Rngs(0))).cache_bytes(config.max_length)
    return {name: kept.get(name, Cycle((0,) * site.stack.unit)) for name, site in config.sites.items()}


def described(asked: Mapping[str, Any], config: Family, attention: Attention, errors: Errors) -> dict[str, Any]:
    """What a run's passport says of attention at each site: the core asked for, those that run, why none faster, how
    far each is from what it was compared with, what one layer keeps of a row of the longest sequence while it decodes,
    and what it computes of a token in training. Where layers differ, all of that for each place of the unit, and the
    sums. `asked` are the keys of `config.model`.
    """
    kept, computed = cache_bytes(config), attention_flops(config)
    return {
        name: {"asked": asked[f"{site.keys}core"]}
        | _described(site, attention[name], errors[name], kept[name], computed[name])
        for name, site in config.sites.items()
    }


def _described(
    site: AttentionSite,
    chosen: Cycle[Chosen],
    errors: Cycle[dict[str, float]],
    kept: Cycle[int],
    computed: Cycle[float],
) -> dict[str, Any]:
    def one(names: Cycle[str], chosen: Sequence[Chosen], errors: Sequence[dict[str, float]]) -> dict[str, Any]:
        refused = {name: f"{no.reason}; {no.fix}" for place in chosen for name, no in place.choice.refused.items()}
        names_of_errors = dict.fromkeys(name for error in errors for name in error)
        worst = {name: max(error[name] for error in errors if name in error) for name in names_of_errors}
        compared = {name: _reference(name) for name in names.values}
        return {"core": str(names), "refused": refused, "compared_with": compared, "self_check": worst}

    names, L = chosen.map(lambda place: place.choice.name), range(site.stack.num_layers)
    places = [
        one(Cycle((name,)), [chosen[n]], [errors[n]]) | {"cache_bytes": kept[n], "flops_per_token": computed[n]}
        for n, name in enumerate(names.values)
    ]
    sums = {"cache_bytes": sum(kept[n] for n in L), "flops_per_token": sum(computed[n] for n in L)}
    return one(names, chosen.values, errors.values) | sums | ({"places": places} if len(places) > 1 else {})


def said(attention: Attention, errors: Errors) -> list[str]:
    """Who attends at each site, how far that is from what it was compared with, and why none faster: in words."""
    found = []
    for name, chosen in attention.items():
        refused = {core: no for place in chosen.values for core, no in place.choice.refused.items()}
        others = "".join(f"; not {core}: {no.reason}" for core, no in refused.items())
        where = f" of the {name}" * (len(attention) > 1)
        cores = chosen.map(lambda place: place.choice.name)
        found.append(f"attention{where} by {cores}, {_compared(chosen, errors[name])}{others}")
    return found


def _compared(chosen: Cycle[Chosen], errors: Cycle[dict[str, float]]) -> str:
    """How far all cores are from what they were compared with, in words."""
    worst: dict[str, list[float]] = {}
    for place, error in zip(chosen.values, errors.values, strict=True):
        worst.setdefault(_reference(place.choice.name), []).extend(error.values())
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
