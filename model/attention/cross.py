"""Attention to something else than the tokens themselves, which decoding looks at again and again."""

import dataclasses

import jax

from model.attention.cache import Seen
from model.attention.config import AttentionConfig
from model.attention.cores.table import attend_few, recurrent
from model.attention.masks.base import Mask
from model.attention.module import MultiHeadAttention
from model.errors import UserError
from model.taps import Tap, untouched


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What cross-attention looks at, and which of it a query sees: vectors (B, S, D), or, in cached decoding, what the
    layer has made of them, keys and values (B, S, G, K). In a stack these have a leading axis of its layers.
    """

    mask: Mask
    x_BSD: jax.Array | None = None
    seen: Seen | None = None


class CrossAttention(MultiHeadAttention):
    """Queries of the tokens, keys and values of a memory, which no position turns and no bias places."""

    def look(
        self, x_BTD: jax.Array, memory: Memory, dropout_keys_B: jax.Array | None = None, tap: Tap = untouched
    ) -> jax.Array:
        """What each token of x takes from the memory, (B, T, D); of keys and values without dropout, and untouched."""
        if memory.seen is None:
            return self(x_BTD, memory.mask, context_BSD=memory.x_BSD, dropout_keys_B=dropout_keys_B, tap=tap)[0]
        # The keys of x itself are nobody's, and no program computes them.
        q_BTHK, *_ = self._projected(x_BTD, x_BTD, (None, None), None)
        k_BSGK, v_BSGK, _ = memory.seen
        o_BTHK = attend_few(self.config.core, q_BTHK, k_BSGK, v_BSGK, self.scores(memory.mask), self.core)
        return self._out(o_BTHK, v_BSGK, x_BTD)

    def remember(self, x_BSD: jax.Array) -> Seen:
        """The keys and values of a memory."""
        _, k_BSGK, v_BSGK, _ = self._projected(x_BSD, x_BSD, (None, None), None)
        return Seen(k_BSGK, v_BSGK)


def check_cross(config: AttentionConfig) -> None:
    """Lets the sizes and choices of an attention layer pass that can look at a memory.

    Raises:
        UserError: an edit that needs the tokens' own keys or values, or a core that goes on from a state.
    """
    config.edited.check_context(config)
    if recurrent(config.core):
        raise UserError(
            f"--config.model.core={config.core!r} goes on from token to token of one sequence, and a memory is another "
            "one; take a core of launch.attention --table that compares queries with keys."
        )
