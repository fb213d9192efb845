"""A stack of blocks, whose parameters are stored by name with a leading layer axis, and which are run by scans."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from model.attention import MultiHeadAttention, Scores
from model.attention.cache import Seen
from model.cycles import Cycle
from model.parameters import Module, Path, flat_params, stack_layers
from model.stack.block import Block, Carry
from model.stack.caches import Caches
from model.stack.config import REMAT, StackConfig
from model.stack.context import Context
from model.stack.loops import Layer, Loops
from model.stack.sharing import begin, shared_places
from model.taps import Taps, within

Body = Callable[[Block, Any, Layer], tuple[Any, Any]]


class Stack(Module):
    """L blocks, which may differ from layer to layer as the cycles of the config say.

    A parameter that all have is stored as one array (L, ...), one that only some have as (number of those, ...), in the
    order of the layers: `blocks` holds them, `owners` says at which places of the unit each is had, and `kinds` what a
    block is there without them. How layers run is the matter of `loops`.

    Raises:
        UserError: a parameter that would have two shapes, or keys that are taken where none can be given.
    """

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        shared = shared_places(config.cycles, config.unit)
        places = Cycle(tuple(config.at(place) for place in range(config.unit)))
        blocks = places.map(lambda one: Block(one, rngs))
        self.config, self.kinds = config, blocks.map(nnx.graphdef)
        # Layers that are equal, but of which one keeps more while it decodes, do not run in one loop.
        kinds = Cycle(tuple((one, place in shared) for place, one in enumerate(places)))
        self.loops = Loops(config.num_layers, kinds, config.unroll, REMAT[config.remat])
        self.blocks, self.owners = stack_layers(blocks.values, config.num_layers)

    def __call__(
        self, x_BTD: jax.Array, contexts: Cycle[Context], taps: Taps | None = None, name: str = "stack"
    ) -> jax.Array:
        """All blocks in order, (B, T, D) to (B, T, D); `contexts` has one for each place of the unit, and sites have
        `name` before them.
        """
        taps = taps or Taps()

        def body(block: Block, carry: tuple[Carry, Any], layer: Layer) -> tuple[Any, Any]:
            number = layer.row(range(self.config.unit))
            own = taps.at(number, carry[1])
            return (block(carry[0], contexts[layer.place].at(number), within(own, name)), own.states), own.found

        ((x_BTD, _), taps.states), found = self._run(body, (begin(self.config, x_BTD), taps.states))
        taps.found |= found
        return x_BTD

    def decode(
        self, x_BTD: jax.Array, contexts: Cycle[Context], caches: Caches, positions_BT: jax.Array
    ) -> tuple[jax.Array, Caches]:
        """All blocks for new tokens, and the caches with them in it."""

        def body(block: Block, carry: tuple[Carry, Caches], layer: Layer) -> tuple[Any, None]:
            (inner, caches), context = carry, contexts[layer.place].at(layer.row(range(self.config.unit)))
            inner, cache = block.decode(inner, context, caches.at(layer), positions_BT)
            return (inner, caches.replaced(layer, cache)), None

        ((x_BTD, _), caches), _ = self._run(body, (begin(self.config, x_BTD), caches))
        return x_BTD, caches

    def remember(self, memory_BSD: jax.Array) -> Seen:
        """The keys and values, (L, B, S, G, K), that the cross-attention of all layers makes of a memory."""

        def body(block: Block, carry: None, layer: Layer) -> tuple[None, Seen]:
            return None, block.cross.remember(memory_BSD)

        return self._run(body, None)[1]

    def scores(self, contexts: Cycle[Context], site: str = "attention") -> list[Scores]:
        """What turns products into weights in the first layer at each place of the unit, of `attention` or `cross`."""
        places = range(self.config.unit)
        return [self.attention(n, site).scores(**contexts[n].at(n).scored(site)) for n in places]

    def attention(self, place: int, site: str = "attention") -> MultiHeadAttention:
        """The attention of the first layer at a place of the unit, or its cross-attention."""
        stacks = flat_params(self.blocks)
        rows = {path: stacks[path][Layer(place).row(owners)] for path, owners in self.owners if place in owners}
        return getattr(self._block(place, rows), site)

    def _block(self, place: int, rows: dict[Path, Any]) -> Block:
        state: Any = nnx.from_flat_state(rows)  # type: ignore[arg-type]
        return nnx.merge(self.kinds[place], state)

    def _run(self, body: Body, carry: Any) -> tuple[Any, Any]:
        """What `body` makes of the carry, block by block, and what it gives besides, stacked: (L, ...)."""

        def run(rows: dict[Path, jax.Array], carry: Any, layer: Layer) -> tuple[Any, Any]:
            return body(self._block(layer.place, rows), carry, layer)

        stacks = {path: param[...] for path, param in flat_params(self.blocks).items()}
        return self.loops.run(run, carry, stacks, self.owners)
