"""What is seen of a model from outside beside its outputs, by hooks at its sites."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from model.families.family import Model
from model.taps import Hook, Taps


def sites(model: Model, **inputs: Any) -> tuple[str, ...]:
    """The names of the sites that a model comes by, in their order, with what `vectors` takes; nothing is computed."""
    taps = Taps()
    jax.eval_shape(lambda: model.vectors(**inputs, taps=taps))
    return tuple(taps.reached)


def seen(model: Model, read: Mapping[str, Callable[[Any], Any]], **inputs: Any) -> dict[str, Any]:
    """What functions make of the values at sites: of a site in layers for each of them, (L, ...)."""

    def hook(function: Callable[[Any], Any]) -> Hook:
        return Hook(lambda state, number, value: (state, value, function(value)))

    taps = Taps({site: hook(function) for site, function in read.items()})
    model.vectors(**inputs, taps=taps)
    return taps.found


def attention_weights(model: Model, **inputs: Any) -> dict[str, jax.Array]:
    """The weights that each layer and head gives to each token, (L, B, H, T, S), by where: `stack.attention`, ...

    Those of a softmax sum to 1, but for what learned sinks take.
    """
    places = [site.removesuffix(".weights") for site in sites(model, **inputs) if site.endswith(".weights")]
    found = seen(model, {f"{place}.weights": lambda looked: looked.weights() for place in places}, **inputs)
    return {place: found[f"{place}.weights"] for place in places}


def norm_inputs(model: Model, measure: Callable[[jax.Array], jax.Array], **inputs: Any) -> dict[str, jax.Array]:
    """What `measure` says of the input (B, T, D) of each norm, by its site; where there are none, of the vectors."""
    norms = [site for site in sites(model, **inputs) if site.endswith("norm.input")]
    return seen(model, dict.fromkeys(norms or ["vectors"], measure), **inputs)
