"""The sites of a model, by names that stay: `stack.3.attention.weights`, `embedding`."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.errors import UserError
from model.families.family import Model
from model.inspection import seen, sites

MEANINGS = {
    "embedding": "vectors of the tokens, before positions, (B, T, D)",
    "residual": "the residual stream behind a layer, (B, T, D)",
    "query": "queries, edited and turned by their positions, (B, T, H, K)",
    "key": "keys, edited and turned by their positions, (B, S, G, K)",
    "value": "values, (B, S, G, K)",
    "weights": "how much each query takes of each key by the core that runs, (B, H, T, S): a sink takes what misses to "
    "1, and edits behind the core are no part of it",
    "heads": "what each head has taken, edits behind the core included, (B, T, H, K)",
    "output": "what a branch gives: to the residual stream, or to the norm behind it if it has one, (B, T, D)",
    "input": "what a norm gets, (B, T, D)",
    "vectors": "what is known at each place behind all layers, (B, T, D)",
}


class Site(NamedTuple):
    """A site in all layers of a stack (`site`: `stack.attention.weights`), those of them that are meant, by their
    numbers, and whether one was named; outside of layers there are none.
    """

    site: str
    layers: tuple[int, ...]
    one: bool = False


def layers_of(model: Model, **inputs: Any) -> dict[str, int]:
    """The sites of a model with what `vectors` takes, in its order, each with its number of layers; outside of them 0.

    Nothing is computed.
    """
    names = sites(model, **inputs)
    found = jax.eval_shape(lambda: seen(model, dict.fromkeys(names, lambda value: jnp.zeros(())), **inputs))
    return {name: found[name].shape[0] if found[name].ndim else 0 for name in names}


def listed(model: Model, **inputs: Any) -> list[tuple[str, str]]:
    """The names of all sites, a layer's with its number, and what each of them means."""
    found = []
    for site, count in layers_of(model, **inputs).items():
        names = [numbered(site, layer) for layer in range(count)] or [site]
        found += [(name, MEANINGS[site.rpartition(".")[2]]) for name in names]
    return found


def numbered(site: str, layer: int) -> str:
    """The name of a site in one layer."""
    stack, _, rest = site.partition(".")
    return f"{stack}.{layer}.{rest}"


def find(known: dict[str, int], names: Iterable[str], layers: Sequence[int] | None = None) -> dict[str, Site]:
    """The sites that are meant by names: of one layer (`stack.3.residual`) or, without a number, of all or of `layers`.

    Raises:
        UserError: there is no such site, or no such layer.
    """
    if layers is not None and not len(layers):
        raise UserError("layers=[] names none; leave it out for all.")
    found = {}
    for name in names:
        stack, _, rest = name.partition(".")
        number, _, behind = rest.partition(".")
        numbers = [number] if number.isdecimal() else []
        site = f"{stack}.{behind}" if numbers else name
        if site not in known or (numbers and not known[site]):
            shown = [numbered(one, 0) if numbers and count else one for one, count in known.items()]
            nearest = difflib.get_close_matches(name, shown, 1, cutoff=0)[0]
            raise UserError(
                f"there is no site {name}; the nearest is {nearest}, and eval.explain.sites.listed has all."
            )
        asked = tuple(map(int, numbers)) or (tuple(range(known[site])) if layers is None else tuple(layers))
        if bad := [layer for layer in asked if not 0 <= layer < known[site] and known[site]]:
            raise UserError(
                f"{name} has layers 0 to {known[site] - 1}, and {bad[0]} is none of them; take one that is."
            )
        found[name] = Site(site, asked if known[site] else (), bool(numbers))
    return found
