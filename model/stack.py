"""A stack of blocks, whose parameters are stored by name with a leading layer axis, and which are run by scans."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Bias, Mask, MultiHeadAttention, Scores
from model.attention.cache import Cache, empty_cache
from model.axes import pin
from model.cycles import Cycle
from model.layers import MLP, NORMS, dropout
from model.parameters import Module, Path, flat_params, stack_layers
from model.positions import Rotation
from model.rows import Number, keeps_all_but_rows, take_row
from model.stack_config import REMAT, StackConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer needs beside its input."""

    mask: Mask
    bias: Bias | None = None
    rotation: Rotation | None = None
    dropout_keys_B: jax.Array | None = None


Watch = Callable[[jax.Array], None]


class Block(Module):
    """Attention and MLP, each with a residual connection.

    Pre-norm: x + f(norm(x)) (Xiong et al. 2020); post-norm: norm(x + f(x)) (Vaswani et al. 2017, section 3.1).
    """

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        norm = NORMS[config.norm]
        dtype, bias = jnp.dtype(config.dtype), config.use_bias
        # Every residual branch starts smaller, so that the sum over 2L of them keeps its variance (Radford et al.
        # 2019, section 2.3).
        gain = 1 / math.sqrt(2 * config.num_layers)
        self.pre, self.rate = config.norm_place == "pre", config.dropout
        self.attention = MultiHeadAttention(config.attention(gain), rngs=rngs)
        hidden = config.mlp_width or 4 * config.width
        self.mlp = MLP(config.mlp, config.width, hidden, bias=bias, dtype=dtype, gain=gain, rngs=rngs)
        self.attention_norm = norm(config.width, bias=bias, rngs=rngs)
        self.mlp_norm = norm(config.width, bias=bias, rngs=rngs)

    def __call__(
        self, x_BTD: jax.Array, context: Context, head_gate_H: jax.Array | None, watch: Watch = lambda x_BTD: None
    ) -> jax.Array:
        """The block's output, (B, T, D); `watch` gets the input of each norm."""

        def attend(y_BTD: jax.Array) -> jax.Array:
            return self.attention(
                y_BTD,
                context.mask,
                bias=context.bias,
                rotation=context.rotation,
                dropout_keys_B=context.dropout_keys_B,
                head_gate_H=head_gate_H,
            )

        return self._residuals(x_BTD, attend, context.dropout_keys_B, watch)

    def decode(
        self, x_BTD: jax.Array, context: Context, cache: Cache, positions_BT: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """The block's output for new tokens, and the cache with them in it."""
        caches = []

        def attend(y_BTD: jax.Array) -> jax.Array:
            o_BTD, new = self.attention.decode(
                y_BTD, context.mask, cache, positions_BT, bias=context.bias, rotation=context.rotation
            )
            caches.append(new)
            return o_BTD

        return self._residuals(x_BTD, attend, None), caches[0]

    def weights(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The attention weights of this block for its input x, (B, H, T, T)."""
        y_BTD = self.attention_norm(x_BTD) if self.pre else x_BTD
        return self.attention.weights(y_BTD, context.mask, bias=context.bias, rotation=context.rotation)

    def _residuals(
        self,
        x: jax.Array,
        attend: Callable[[jax.Array], jax.Array],
        keys_B: jax.Array | None,
        watch: Watch = lambda x_BTD: None,
    ) -> jax.Array:
        for site, branch, norm in ((1, attend, self.attention_norm), (2, self.mlp, self.mlp_norm)):
            before = x
            y = branch(norm(x) if self.pre else x)
            x = x + dropout(y, self.rate, keys_B, site)
            watch(before if self.pre else x)
            x = pin(x if self.pre else norm(x), "batch", "length", None)
        return x


@dataclasses.dataclass(frozen=True)
class Layer:
    """Where a running stack stands: `step` layers after a place of the unit, all equal to it, in repetition `turn`."""

    place: int
    turn: Number = 0
    step: Number = 0

    def row(self, places: Sequence[int]) -> Number:
        """Its number among the layers that stand at these places of the unit."""
        return self.turn * len(places) + places.index(self.place) + self.step


@functools.partial(jax.tree_util.register_dataclass, data_fields=["stacks"], meta_fields=["places", "length"])
@dataclasses.dataclass(frozen=True)
class Caches:
    """What all layers keep while they decode `length` positions: those at the same `places` of the unit in one stack.

    The leading axis of a stack is that of its layers, in their order.
    """

    stacks: tuple[Any, ...]
    places: tuple[tuple[int, ...], ...]
    length: int

    def at(self, layer: Layer) -> Cache:
        """The cache of a layer."""
        group, row = self._where(layer)
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, row, keepdims=False), self.stacks[group])

    def replaced(self, layer: Layer, cache: Cache) -> "Caches":
        """The same with another cache for a layer."""
        group, row = self._where(layer)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=row, axis=0)
        new = jax.tree.map(put, self.stacks[group], cache)
        return dataclasses.replace(self, stacks=(*self.stacks[:group], new, *self.stacks[group + 1 :]))

    def _where(self, layer: Layer) -> tuple[int, Number]:
        group = next(n for n, places in enumerate(self.places) if layer.place in places)
        return group, layer.row(self.places[group])


Runs = tuple[tuple[int, int], ...]
Body = Callable[[Block, Any, Layer], tuple[Any, Any]]


class Stack(Module):
    """L blocks, which may differ from layer to layer as the cycles of the config say.

    A parameter that all have is stored as one array (L, ...), one that only some have as (number of those, ...), in the
    order of the layers. Layers run in a loop over the unit after which all cycles begin anew, equal neighbours inside
    it in a loop of their own, and at last what remains of a unit. `unroll` layers run per iteration (L: no loop is
    left). Storage, and so optimizers and checkpoints, know nothing of that.

    Raises:
        UserError: a parameter that would have two shapes.
    """

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        places = Cycle(tuple(config.at(place) for place in range(config.unit)))
        blocks = places.map(lambda one: Block(one, rngs))
        self.config, self.runs, self.kinds = config, _runs(places), blocks.map(nnx.graphdef)
        self.blocks, self.owners = stack_layers(blocks.values, config.num_layers)

    def __call__(self, x_BTD: jax.Array, contexts: Cycle[Context], head_gate_LH: jax.Array | None = None) -> jax.Array:
        """All blocks in order, (B, T, D) to (B, T, D); `contexts` has one for each place of the unit."""

        def body(block: Block, x: jax.Array, layer: Layer) -> tuple[jax.Array, None]:
            context, number = contexts[layer.place], self._number(layer)
            context = dataclasses.replace(context, dropout_keys_B=_folded(context.dropout_keys_B, number))
            return block(x, context, None if head_gate_LH is None else head_gate_LH[number]), None

        return self._run(body, x_BTD)[0]

    def decode(
        self, x_BTD: jax.Array, contexts: Cycle[Context], caches: Caches, positions_BT: jax.Array
    ) -> tuple[jax.Array, Caches]:
        """All blocks for new tokens, and the caches with them in it."""

        def body(block: Block, carry: tuple[jax.Array, Caches], layer: Layer) -> tuple[Any, None]:
            x, caches = carry
            cache = caches.at(layer)
            x, cache = block.decode(x, contexts[layer.place], cache, positions_BT)
            return (x, caches.replaced(layer, cache)), None

        return self._run(body, (x_BTD, caches))[0]

    def weights(self, x_BTD: jax.Array, contexts: Cycle[Context]) -> jax.Array:
        """The attention weights of every layer, (L, B, H, T, T)."""

        def body(block: Block, x: jax.Array, layer: Layer) -> tuple[jax.Array, jax.Array]:
            context = contexts[layer.place]
            return block(x, context, None), block.weights(x, context)

        return self._run(body, x_BTD)[1]

    def of_norms(
        self, measure: Callable[[jax.Array], jax.Array], x_BTD: jax.Array, contexts: Cycle[Context]
    ) -> tuple[jax.Array, jax.Array]:
        """The output of all blocks, and what `measure` says of the input of each norm, (L, 2, ...)."""

        def body(block: Block, x: jax.Array, layer: Layer) -> tuple[jax.Array, jax.Array]:
            seen: list[jax.Array] = []
            y = block(x, contexts[layer.place], None, lambda x_BTD: seen.append(measure(x_BTD)))
            return y, jnp.stack(seen)

        return self._run(body, x_BTD)

    def scores(self, contexts: Cycle[Context]) -> list[Scores]:
        """What turns products into weights in the first layer at each place of the unit."""
        stacks, found = flat_params(self.blocks), []
        for place in range(self.config.unit):
            rows = {path: stacks[path][Layer(place).row(owners)] for path, owners in self.owners if place in owners}
            attention, context = self._block(place, rows).attention, contexts[place]
            found.append(attention.scores(context.mask, context.bias, _folded(context.dropout_keys_B, place)))
        return found

    def init_cache(self, batch_size: int, length: int, reaches: Cycle[float]) -> Caches:
        """Empty caches of all layers for `length` positions, or, of a layer that looks back less, for its reach."""
        config = self.config
        slots = [int(min(length, reaches[place] + 1)) for place in range(config.unit)]
        stacks, places = [], []
        for size in dict.fromkeys(slots):
            places.append(tuple(place for place, own in enumerate(slots) if own == size))
            count = sum(layer % config.unit in places[-1] for layer in range(config.num_layers))
            shape = count, batch_size, size, config.num_kv_heads or config.num_heads, config.head_width
            stacks.append(empty_cache(shape, length, config.dtype))
        return Caches(tuple(stacks), tuple(places), length)

    def _number(self, layer: Layer) -> Number:
        return layer.row(range(self.config.unit))

    def _block(self, place: int, rows: dict[Path, Any]) -> Block:
        state: Any = nnx.from_flat_state(rows)  # type: ignore[arg-type]
        return nnx.merge(self.kinds[place], state)

    def _run(self, body: Body, carry: Any) -> tuple[Any, Any]:
        """What `body` makes of the carry, layer by layer, and what it gives besides, stacked: (L, ...)."""
        stacks = {path: param[...] for path, param in flat_params(self.blocks).items()}
        whole = self.config.unroll >= self.config.num_layers  # no loop is left
        return self._unrolled(body, carry, stacks) if whole else self._looped(body, carry, stacks)

    def _looped(self, body: Body, carry: Any, stacks: dict[Path, jax.Array]) -> tuple[Any, Any]:
        L, unit, unroll = self.config.num_layers, self.config.unit, self.config.unroll

        def run(place: int, turn: Number, carry: Any, step: Number) -> tuple[Any, Any]:
            (inner, carried), layer, rows = carry, Layer(place, turn, step), {}
            carried = dict(carried)
            for path, owners in self.owners:
                if place in owners:
                    rows[path], carried[path] = take_row(stacks[path], carried[path], layer.row(owners))
            inner, given = body(self._block(place, rows), inner, layer)
            return (inner, carried), given

        def turns_of(runs: Runs, carry: Any, turn: Number) -> tuple[Any, Any]:
            parts = []
            for place, count in runs:
                one = self._remat(functools.partial(run, place, turn), loops=True)
                carry, given = _repeat(one, carry, count, unroll)
                parts.append(given)
            return carry, _joined(*parts)

        turns, rest = divmod(L, unit)
        carry, given = _repeat(functools.partial(turns_of, self.runs), (carry, stacks), turns, unroll // unit)
        given = jax.tree.map(lambda x: x.reshape(turns * unit, *x.shape[2:]), given)
        if rest:
            carry, last = turns_of(_beginning(self.runs, rest), carry, turns)
            given = _joined(given, last)
        return carry[0], given

    def _unrolled(self, body: Body, carry: Any, stacks: dict[Path, jax.Array]) -> tuple[Any, Any]:
        turns, rest = divmod(self.config.num_layers, self.config.unit)
        runs = [(Layer(place, turn), count) for turn in range(turns) for place, count in self.runs]
        runs += [(Layer(place, turns), count) for place, count in _beginning(self.runs, rest)]
        pieces = {
            path: iter(jax.lax.split(stacks[path], [count for layer, count in runs if layer.place in owners]))
            for path, owners in self.owners
        }
        parts = []
        for layer, count in runs:

            def run(carry: Any, given: Any, layer: Layer = layer) -> tuple[Any, Any]:
                rows, step = given
                return body(self._block(layer.place, rows), carry, dataclasses.replace(layer, step=step))

            rows = {path: next(pieces[path]) for path, owners in self.owners if layer.place in owners}
            one = self._remat(run, loops=False)
            carry, given = jax.lax.scan(one, carry, (rows, jnp.arange(count)), unroll=count)
            parts.append(given)
        return carry, _joined(*parts)

    def _remat(self, function: Callable[..., Any], loops: bool) -> Callable[..., Any]:
        policy = REMAT[self.config.remat]
        if policy is None:
            # Else each iteration of a loop would keep its rows for the backward pass.
            return jax.checkpoint(function, policy=keeps_all_but_rows, prevent_cse=False) if loops else function
        # Where no loop is left to keep forward and backward apart, XLA would merge what is computed twice.
        return jax.checkpoint(function, policy=policy, prevent_cse=not loops)


def _repeat(body: Callable[[Any, Number], tuple[Any, Any]], carry: Any, count: int, unroll: int) -> tuple[Any, Any]:
    """`body(carry, number)` for the numbers below `count`, and what it gives besides, stacked."""
    if count > 1:
        return jax.lax.scan(body, carry, jnp.arange(count), unroll=min(max(unroll, 1), count))
    carry, given = body(carry, 0)
    return carry, jax.tree.map(lambda x: x[None], given)


def _joined(*parts: Any) -> Any:
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *some: jnp.concatenate(some), *parts)


def _runs(places: Cycle[Any]) -> Runs:
    """The first place and the number of equal neighbours."""
    runs, place = [], 0
    for _, same in itertools.groupby(places.values):
        runs.append((place, len(list(same))))
        place += runs[-1][1]
    return tuple(runs)


def _beginning(runs: Runs, count: int) -> Runs:
    """The runs of the first `count` places."""
    return tuple((place, min(number, count - place)) for place, number in runs if place < count)


def _folded(keys_B: jax.Array | None, number: Number) -> jax.Array | None:
    return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
