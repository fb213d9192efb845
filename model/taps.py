"""What is seen of a model at its sites while it runs, and what is put there.

A site is a place in the program with a stable name, such as `stack.attention.weights`. A hook there is a function
`(state, number, value) -> (state, value, more)`: it gets what layer `number` has there (0 outside of layers), gives
what the model is to go on with, carries a state from layer to layer, and gives more to keep. So reading, adding up,
changing and differentiating are one thing, the loops over layers stay loops, and where no hook is there is no program.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from model.errors import UserError

Number = int | jax.Array
Tap = Callable[[str, Any], Any]  # from a site, named from where it is called, and a value to the value that goes on


def untouched(site: str, value: Any) -> Any:
    """The tap of what nobody looks at."""
    return value


def within(tap: Tap, part: str) -> Tap:
    """The tap of a part, whose sites have its name before them."""
    return lambda site, value: tap(f"{part}.{site}", value)


class Hook(NamedTuple):
    """`call(state, number, value) -> (state, value, more)`, and the state before the first layer; hooks of one name,
    at several sites, share it.
    """

    call: Callable[[Any, Number, Any], tuple[Any, Any, Any]]
    state: Any = None
    name: str = ""


class Taps:
    """Hooks by the names of their sites, for one trace of a model.

    After it `states` are the last ones of the hooks, by their names or else by their sites, and `found` what they gave
    besides, (L, ...) of a site in layers; `reached` names the sites that the trace came by, in their order, with a hook
    or without.
    """

    def __init__(self, hooks: Mapping[str, Hook] = MappingProxyType({})):
        self._hooks = hooks
        self._number: Number = 0
        self.states = {hook.name or site: hook.state for site, hook in hooks.items()}
        self.found = dict[str, Any]()
        self.reached = dict[str, None]()

    def __call__(self, site: str, value: Any) -> Any:
        """What goes on from a site."""
        self.reached[site] = None
        hook = self._hooks.get(site)
        if hook is None:
            return value
        name = hook.name or site
        self.states[name], value, self.found[site] = hook.call(self.states[name], self._number, value)
        return value

    def shown(self, site: str, value: Any) -> None:
        """Shows what has gone on already, of which there is one where others have one in each layer: of a layer 0.

        Raises:
            UserError: a hook sets it.
        """
        own = self.at(0, self.states)
        if own(site, value) is not value:
            raise UserError(f"{site} of this model can only be read, as all that follows from it is done; set another.")
        self.states, self.found = own.states, self.found | jax.tree.map(lambda x: x[None], own.found)

    def at(self, number: Number, states: dict[str, Any]) -> "Taps":
        """The same in layer `number`, with the states there."""
        own = Taps(self._hooks)
        own._number, own.states, own.reached = number, dict(states), self.reached
        return own


def head_gates(gates_LH: jax.Array) -> Hook:
    """What weighs each head's output (B, T, H, K) at a site `heads`: by 1, as it is; by 0, pruned."""

    def call(state: Any, number: Number, o_BTHK: jax.Array) -> tuple[Any, jax.Array, None]:
        gate_H = gates_LH[number].astype(o_BTHK.dtype)
        return state, o_BTHK * gate_H[None, None, :, None], None

    return Hook(call)
