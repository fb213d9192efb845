"""How layers run: in loops over what repeats, whose parameters are rows of stacks."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from model.cycles import Cycle
from model.parameters import Owners, Path
from model.stack.rows import Number, keeps_all_but_rows, take_row


@dataclasses.dataclass(frozen=True)
class Layer:
    """Where a running stack stands: `step` layers after a place of the unit, all equal to it, in repetition `turn`."""

    place: int
    turn: Number = 0
    step: Number = 0

    def row(self, places: Sequence[int]) -> Number:
        """Its number among the layers that stand at these places of the unit."""
        return self.turn * len(places) + places.index(self.place) + self.step


Run = Callable[[dict[Path, jax.Array], Any, Layer], tuple[Any, Any]]  # a layer's rows and the carry to carry and more
Stacks = dict[Path, jax.Array]
_Runs = tuple[tuple[int, int], ...]  # the first place, and the number of equal neighbours


@dataclasses.dataclass(frozen=True)
class Loops:
    """A loop over the unit after which all cycles begin anew, equal neighbours in a loop inside it, then what remains.

    `places` tells of each place of the unit what its layers are, `unroll` how many layers run per iteration (L: no loop
    is left), and `policy` what the backward pass computes again (None: nothing).
    """

    num_layers: int
    places: Cycle[Any]
    unroll: int
    policy: Callable[..., Any] | None

    def run(self, run: Run, carry: Any, stacks: Stacks, owners: Owners) -> tuple[Any, Any]:
        """What `run` makes of the carry, layer by layer, and what it gives besides, stacked: (L, ...).

        A layer gets its row of each stack that has one for its place.
        """
        whole = self.unroll >= self.num_layers
        return self._unrolled(run, carry, stacks, owners) if whole else self._looped(run, carry, stacks, owners)

    def _looped(self, run: Run, carry: Any, stacks: Stacks, owners: Owners) -> tuple[Any, Any]:
        unit = len(self.places)

        def one(place: int, turn: Number, carry: Any, step: Number) -> tuple[Any, Any]:
            (inner, carried), layer, rows = carry, Layer(place, turn, step), {}
            carried = dict(carried)
            for path, having in owners:
                if place in having:
                    rows[path], carried[path] = take_row(stacks[path], carried[path], layer.row(having))
            inner, given = run(rows, inner, layer)
            return (inner, carried), given

        def turn_of(runs: _Runs, carry: Any, turn: Number) -> tuple[Any, Any]:
            parts = []
            for place, count in runs:
                layer = self._remat(functools.partial(one, place, turn), loops=True)
                carry, given = _repeat(layer, carry, count, self.unroll)
                parts.append(given)
            return carry, _joined(*parts)

        turns, rest = divmod(self.num_layers, unit)
        whole_turn = functools.partial(turn_of, _runs(self.places))
        carry, given = _repeat(whole_turn, (carry, stacks), turns, self.unroll // unit)
        given = jax.tree.map(lambda x: x.reshape(turns * unit, *x.shape[2:]), given)
        if rest:
            carry, last = turn_of(_beginning(_runs(self.places), rest), carry, turns)
            given = _joined(given, last)
        return carry[0], given

    def _unrolled(self, run: Run, carry: Any, stacks: Stacks, owners: Owners) -> tuple[Any, Any]:
        turns, rest = divmod(self.num_layers, len(self.places))
        runs = [(Layer(place, turn), count) for turn in range(turns) for place, count in _runs(self.places)]
        runs += [(Layer(place, turns), count) for place, count in _beginning(_runs(self.places), rest)]
        pieces = {
            path: iter(jax.lax.split(stacks[path], [count for layer, count in runs if layer.place in having]))
            for path, having in owners
        }
        parts = []
        for layer, count in runs:

            def one(carry: Any, given: Any, layer: Layer = layer) -> tuple[Any, Any]:
                rows, step = given
                return run(rows, carry, dataclasses.replace(layer, step=step))

            rows = {path: next(pieces[path]) for path, having in owners if layer.place in having}
            step = self._remat(one, loops=False)
            carry, given = jax.lax.scan(step, carry, (rows, jnp.arange(count)), unroll=count)
            parts.append(given)
        return carry, _joined(*parts)

    def _remat(self, function: Callable[..., Any], loops: bool) -> Callable[..., Any]:
        if self.policy is None:
            # Else each iteration of a loop would keep its rows for the backward pass.
            return jax.checkpoint(function, policy=keeps_all_but_rows, prevent_cse=False) if loops else function
        # Where no loop is left to keep forward and backward apart, XLA would merge what is computed twice.
        return jax.checkpoint(function, policy=self.policy, prevent_cse=not loops)


def _repeat(body: Callable[[Any, Number], tuple[Any, Any]], carry: Any, count: int, unroll: int) -> tuple[Any, Any]:
    """`body(carry, number)` for the numbers below `count`, and what it gives besides, stacked."""
    if count > 1:
        return jax.lax.scan(body, carry, jnp.arange(count), unroll=min(max(unroll, 1), count))
    carry, given = body(carry, 0)
    return carry, jax.tree.map(lambda x: x[None], given)


def _joined(*parts: Any) -> Any:
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *some: jnp.concatenate(some), *parts)


def _runs(places: Cycle[Any]) -> _Runs:
    runs, place = [], 0
    for _, same in itertools.groupby(places.values):
        runs.append((place, len(list(same))))
        place += runs[-1][1]
    return tuple(runs)


def _beginning(runs: _Runs, count: int) -> _Runs:
    """The runs of the first `count` places."""
    return tuple((place, min(number, count - place)) for place, number in runs if place < count)
