"""What all layers keep while they decode, in few stacks."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from model.attention.cache import Cache, StateCache, empty_cache
from model.attention.cores.table import recurrent
from model.attention.cross import Memory
from model.cycles import Cycle
from model.stack.config import StackConfig
from model.stack.loops import Layer
from model.stack.rows import Number
from model.stack.sharing import key_places, shared_places


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["stacks"], meta_fields=["places", "sources", "length"]
)
@dataclasses.dataclass(frozen=True)
class Caches:
    """What all layers keep while they decode `length` positions: those at the same `places` of the unit in one stack.

    The leading axis of a stack is that of its layers, in their order. `sources` says of each place of the unit at which
    one stands what it attends to: a layer that takes keys and values of another has no cache, and writes what that one
    has written there once more.
    """

    stacks: tuple[Any, ...]
    places: tuple[tuple[int, ...], ...]
    sources: tuple[int, ...]
    length: int

    def at(self, layer: Layer) -> Cache | StateCache:
        """The cache of a layer."""
        group, row = self._where(layer)
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, row, keepdims=False), self.stacks[group])

    def replaced(self, layer: Layer, cache: Cache | StateCache) -> "Caches":
        """The same with another cache for a layer."""
        group, row = self._where(layer)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=row, axis=0)
        new = jax.tree.map(put, self.stacks[group], cache)
        return dataclasses.replace(self, stacks=(*self.stacks[:group], new, *self.stacks[group + 1 :]))

    @property
    def layer_bytes(self) -> Cycle[int]:
        """The bytes that one layer keeps, at each place of the unit; the stacks may be abstract."""
        sizes = [sum(x.size // len(x) * x.dtype.itemsize for x in jax.tree.leaves(one)) for one in self.stacks]
        of = {place: size for size, places in zip(sizes, self.places, strict=True) for place in places}
        return Cycle(tuple(of.get(place, 0) for place in range(len(self.sources))))

    def taken(self, rows_B: jax.Array) -> "Caches":
        """The caches of these rows, in their order; a row may be taken several times, as when a beam splits."""
        return dataclasses.replace(self, stacks=_taken(self.stacks, rows_B, axis=1))

    def _where(self, layer: Layer) -> tuple[int, Number]:
        source = self.sources[layer.place]
        layer = layer if source == layer.place else Layer(source, layer.turn)
        group = next(n for n, places in enumerate(self.places) if layer.place in places)
        return group, layer.row(self.places[group])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairCaches:
    """What a decoder keeps: `own`, of the tokens that it writes, and the keys and values of a memory, which all layers
    have made of it at the start, (L, B, S, G, K), as long as it is and whatever `own` keeps.
    """

    own: Caches
    memory: Memory

    @property
    def length(self) -> int:
        """For how many positions it is."""
        return self.own.length

    @property
    def memory_bytes(self) -> int:
        """The bytes that one layer keeps of the memory; the arrays may be abstract."""
        return sum(x.size // len(x) * x.dtype.itemsize for x in jax.tree.leaves(self.memory.seen))

    def taken(self, rows_B: jax.Array) -> "PairCaches":
        """As that of `Caches`: a row takes its memory along."""
        mask, seen = _taken(self.memory.mask, rows_B, axis=0), _taken(self.memory.seen, rows_B, axis=1)
        return PairCaches(self.own.taken(rows_B), Memory(mask, seen=seen))


def _taken(tree: Any, rows_B: jax.Array, axis: int) -> Any:
    return jax.tree.map(lambda x: jnp.take(x, rows_B, axis=axis), tree)


def empty_caches(config: StackConfig, batch_size: int, length: int, reaches: Cycle[float]) -> Caches:
    """Empty caches of a stack: for `length` positions, or, of layers that look back less, for their reach; those whose
    core has a state keep that.

    What several layers attend to is kept for all positions: they may look back differently far, and each writes it.
    """
    sources = key_places(config.cycles, config.unit)
    shared = shared_places(config.cycles, config.unit)
    slots = {n: length if n in shared else int(min(length, reaches[n] + 1)) for n in dict.fromkeys(sources)}
    kept = {n: recurrent(config.cycles["core"][n]) or size for n, size in slots.items()}
    places = tuple(tuple(n for n, own in kept.items() if own == one) for one in dict.fromkeys(kept.values()))
    sizes, stacks = config.attention().sizes, list[Any]()
    for group in places:
        count, one = sum(layer % config.unit in group for layer in range(config.num_layers)), kept[group[0]]
        if isinstance(one, int):
            stacks.append(empty_cache((count, batch_size, one, sizes.G, sizes.K), length, sizes.dtype))
        else:
            none_yet = jnp.full((count, batch_size), -1, jnp.int32)
            stacks.append(StateCache(one.empty(sizes, count, batch_size), none_yet))
    return Caches(tuple(stacks), places, sources, length)
