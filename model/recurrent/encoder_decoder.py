"""An encoder-decoder of recurrent layers: a bidirectional encoder and additive attention (Bahdanau et al. 2015)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention.cache import in_order
from model.bounds import check_tokens, without_padding
from model.errors import Range, UserError, check_ranges
from model.families.encoder_decoder import Pairs
from model.parameters import Module
from model.recurrent.attentive import Attended, Decoder, Memory
from model.recurrent.cells import Carry
from model.recurrent.config import RecurrentKeys
from model.recurrent.documents import Documents, find_documents
from model.recurrent.layers import Encoder
from model.stack.context import folded
from model.taps import Tap, Taps, untouched
from model.vocabulary import Embedding, Head, Readout

_ENCODER = 2**31 + 2  # what its keys of dropout are folded with; those of the decoder are, with smaller numbers
_RANGES = {
    "encoder_num_layers": Range(1, 10_000, zero="as many as num_layers"),
    "cross_width": Range(1, 2**20, zero="width"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentEncoderDecoderConfig(RecurrentKeys):
    """An encoder and a decoder of `num_layers`, over one vocabulary.

    Raises:
        UserError: as RecurrentKeys, and for a width that two directions cannot share.
    """

    HEADS: ClassVar = ("target",)

    encoder_num_layers: int = 0  # layers of the encoder, each in both directions; 0: as num_layers
    cross_width: int = 0  # A, hidden width of the attention; 0: width
    # No key, for the task says it: T of training, a part of S; 0: as the sources.
    target_length: int = dataclasses.field(default_factory=int)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("config.model", self, _RANGES)
        if self.width % 2:
            raise UserError(f"--config.model.width={self.width} must be even: each direction of the encoder has half.")

    @property
    def E(self) -> int:
        """The number of layers of the encoder."""
        return self.encoder_num_layers or self.num_layers

    @property
    def A(self) -> int:
        """The hidden width of the attention."""
        return self.cross_width or self.width

    def build(self, rngs: nnx.Rngs) -> "RecurrentEncoderDecoder":
        """The model of these sizes and choices."""
        return RecurrentEncoderDecoder(self, rngs=rngs)

    @property
    def other_flops(self) -> float:
        """6 x (A + D) for each of the S places that a token looks at: its score, and its share of the context. The
        matrix (A, 1) of the score is used there, and not once for the token.
        """
        return 6.0 * (self.max_length * (self.A + self.width) - self.A) * self.uses(("decoder",))

    def uses(self, path: tuple[str, ...]) -> float:
        """The encoder's matrices, and that of what attention looks at, once for each token of the sources."""
        of_sources = path[0] == "encoder" or path[-3:-1] == ("attention", "key")
        return 1.0 if of_sources else (self.target_length or self.max_length) / self.max_length

    @property
    def axes(self) -> dict[str, tuple[int, str]]:
        """Each direction of the encoder has half of the width."""
        return super().axes | {"mlp": (self.width // 2, "model.width / 2")}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecurrentPairCache:
    """What decoding goes on from: the encoded sources, the carries of the first layer, (B, D), and of those above it,
    (L - 1, B, D), and the position of each row's newest token (-1: none yet).
    """

    memory: Memory
    first: Carry
    upper: Carry | None
    newest_B: jax.Array

    def taken(self, rows_B: jax.Array) -> "RecurrentPairCache":
        """The cache of these rows, in their order; a row may be taken several times, as when a beam splits."""
        memory, first, newest_B = jax.tree.map(lambda x: x[rows_B], (self.memory, self.first, self.newest_B))
        return RecurrentPairCache(memory, first, jax.tree.map(lambda x: x[:, rows_B], self.upper), newest_B)


class RecurrentEncoderDecoder(Module):
    """Pairs in, next-token logits of their second halves out.

    Raises:
        UserError: see RecurrentEncoderDecoderConfig; when called, token ids outside of the vocabulary. Where they are
            only known on the device, the outputs of their pair are NaN.
    """

    def __init__(self, config: RecurrentEncoderDecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        D, V = config.width, config.vocab_size
        self.embed = Embedding(V, D, dtype=jnp.dtype(config.dtype), rngs=rngs, scaled=True)
        self.encoder, self.decoder = Encoder(config, config.E, rngs), Decoder(config, config.A, rngs)
        self.head = Head(D, V, tied=config.tied, bias=False, rngs=rngs)

    def __call__(self, pairs: Pairs, taps: Taps | None = None) -> jax.Array:
        """Logits of the next token at each place, (B, T, V) in float32: what `readout` makes of the `vectors`."""
        return self.readout()(self.vectors(pairs, taps))

    def vectors(self, pairs: Pairs, taps: Taps | None = None) -> jax.Array:
        """What the model knows at each place that it writes, (B, T, D); at padding it is finite and means nothing.

        At the site `decoder.cross.weights` stands what was attended to.
        """
        taps = taps or Taps()
        x_BTD, attended = self._taught(pairs, taps)
        taps.shown("decoder.cross.weights", attended)
        return taps("vectors", x_BTD)

    def readout(self) -> Readout:
        """What turns vectors into logits."""
        return self.head.readout(self.embed, 0.0)

    def encode(self, pairs: Pairs, tap: Tap = untouched) -> jax.Array:
        """What the encoder makes of the sources, (B, S, D); of the pairs it reads nothing else."""
        sources_BS, ids_BS = pairs.sources_BS, pairs.source_segment_ids_BS
        valid_BS = None if ids_BS is None else ids_BS != 0
        check_tokens(sources_BS, ids_BS, None, self.config.vocab_size, None, valid_BS)
        documents, keys_B = find_documents(sources_BS.shape, ids_BS, valid_BS), folded(pairs.dropout_keys_B, _ENCODER)
        x_BSD = tap("encoder.embedding", self.embed(sources_BS))
        return self.encoder(without_padding(x_BSD, valid_BS), documents, keys_B)

    def init_cache(
        self, memory_BSD: jax.Array, source_segment_ids_BS: jax.Array | None, length: int
    ) -> RecurrentPairCache:
        """The cache before the first token of each row, with what `encode` has made of its source, where the ids are
        not 0; it is as large for every `length`.
        """
        ids_BS = jnp.sign(_ids(source_segment_ids_BS, memory_BSD))
        carry, none_yet_B = self.decoder.empty(len(ids_BS)), jnp.full(len(ids_BS), -1, jnp.int32)
        return RecurrentPairCache(self.decoder.first.remember(memory_BSD, ids_BS), *carry, none_yet_B)

    def decode(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, cache: RecurrentPairCache
    ) -> tuple[jax.Array, RecurrentPairCache]:
        """Logits (B, T, V) of new tokens at absolute positions, and the cache with them in it; see `Recurrent.decode`.

        At position 0 stands the start token.
        """
        check_tokens(tokens_BT, None, positions_BT, self.config.vocab_size, None)
        fits_BT, newest_B = in_order(cache.newest_B, positions_BT)
        documents = Documents(positions_BT == 0, jnp.zeros_like(fits_BT), positions_BT >= 0)
        x_BTD = jnp.where(fits_BT[..., None], self.embed(tokens_BT), jnp.nan)
        ids_BT, carry = documents.valid_BT.astype(jnp.int32), (cache.first, cache.upper)
        x_BTD, _, carry = self.decoder(x_BTD, documents, ids_BT, cache.memory, carry)
        x_BTD = jnp.where(documents.valid_BT[..., None], x_BTD, jnp.nan)
        return self.readout()(x_BTD), RecurrentPairCache(cache.memory, *carry, newest_B)

    def _taught(self, pairs: Pairs, tap: Tap) -> tuple[jax.Array, Attended]:
        """(vectors, what was attended to) where all tokens of the targets are known."""
        memory_BSD, ids_BT = self.encode(pairs, tap), _ids(pairs.segment_ids_BT, pairs.tokens_BT)
        source_ids_BS = _ids(pairs.source_segment_ids_BS, memory_BSD)
        valid_BT = ids_BT != 0
        check_tokens(pairs.tokens_BT, ids_BT, None, self.config.vocab_size, None, valid_BT)
        documents = find_documents(ids_BT.shape, ids_BT, valid_BT)
        x_BTD, memory = (
            tap("decoder.embedding", self.embed(pairs.tokens_BT)),
            self.decoder.first.remember(memory_BSD, source_ids_BS),
        )
        carry = self.decoder.empty(len(ids_BT))
        return self.decoder(x_BTD, documents, ids_BT, memory, carry, pairs.dropout_keys_B)[:2]


def _ids(ids: jax.Array | None, x: jax.Array) -> jax.Array:
    """Of which pair of its row each place of x is, (B, length); without ids, all are of one."""
    return jnp.ones(x.shape[:2], jnp.int32) if ids is None else jnp.broadcast_to(ids, x.shape[:2])
