"""An encoder-decoder on shared stacks: the Transformer (Vaswani et al. 2017), T5 (Raffel et al. 2020)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Mask, MultiHeadAttention, Scores, full, padding, parse_mask, segments
from model.attention.cross import Memory, check_cross
from model.bounds import check_within
from model.cycles import Cycle
from model.errors import Range, check_range, keys_of
from model.families.family import AttentionSite, Family
from model.families.side import Side
from model.parameters import Module
from model.stack.caches import PairCaches, empty_caches
from model.stack.config import SideConfig
from model.stack.context import Context, folded
from model.taps import Tap, Taps, untouched, within
from model.use_bias import parse_use_bias
from model.vocabulary import EMBEDDINGS, Embedding, Head, Readout

_ENCODER_SITE = 2**31 + 1  # what the encoder's dropout keys are folded with, beside the numbers of layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(SideConfig, Family):
    """A decoder, which has the plain keys, an encoder and the cross-attention between them, which have those of their
    own that begin with their names, and share the others.

    Raises:
        UserError: as SideConfig of both stacks, and for cross-attention that needs keys of the decoder's own tokens.
    """

    HEADS: ClassVar = ("target",)
    has_cross: ClassVar[bool] = True
    CROSS: ClassVar = ("core", "scale", "soft_cap", "sinks", "edits")
    LAYERED: ClassVar = (
        SideConfig.LAYERED
        | {f"encoder_{key}": kind for key, kind in SideConfig.LAYERED.items()}
        | {f"cross_{key}": SideConfig.LAYERED[key] for key in CROSS}
    )

    tied: bool = True  # the output head is the embedding, transposed
    logits_scale: float = 1.0  # factor on the vectors that logits are made of; 0: 1/sqrt(width), as in a tied T5
    logits_soft_cap: float = 0.0  # c of c tanh(logit / c), which bounds the logits; 0: none
    encoder_num_layers: int = 0  # L of the encoder; 0: as num_layers
    encoder_core: str = "auto"  # as core, in the encoder
    encoder_scale: float = 0.0  # as scale, in the encoder
    encoder_soft_cap: float = 0.0  # as soft_cap, in the encoder
    encoder_sinks: bool = False  # as sinks, in the encoder
    encoder_edits: Any = "none"  # as edits, in the encoder
    encoder_position: Any = "rope"  # as position, in the encoder
    encoder_bias: Any = "none"  # as bias, in the encoder
    encoder_mask: Any = "full"  # as mask, in the encoder
    cross_core: str = "auto"  # as core, in the decoder's attention to the encoder
    cross_scale: float = 0.0  # as scale, there
    cross_soft_cap: float = 0.0  # as soft_cap, there
    cross_sinks: bool = False  # as sinks, there
    cross_edits: Any = "none"  # as edits, there: qk_norm, output_gate, ...
    # No key, for the task says it: T of training, a part of S; 0: as the sources.
    target_length: int = dataclasses.field(default_factory=int)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("config.data.vocab_size", self.vocab_size, Range(1, 2**24))
        check_range("config.model.logits_soft_cap", self.logits_soft_cap, Range(1e-6, 1e6, zero="none"))
        check_range("config.model.logits_scale", self.logits_scale, Range(1e-6, 1e6, zero="1/sqrt(width)"))
        encoder_layers = Range(1, 10_000, zero="as many as num_layers")
        check_range("config.model.encoder_num_layers", self.encoder_num_layers, encoder_layers)
        if self.unit == 1:
            with keys_of("cross", self.CROSS):
                check_cross(self.attention(own="cross_"))
            assert self.encoder

    @functools.cached_property
    def cycles(self) -> dict[str, Cycle[Any]]:
        """Each layered key of decoder and cross-attention to what the decoder's layers take in turn."""
        return {key: one for key, one in super().cycles.items() if not key.startswith("encoder_")}

    @functools.cached_property
    def encoder(self) -> SideConfig:
        """The encoder's sizes and choices."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(SideConfig)}
        own = {key: getattr(self, f"encoder_{key}") for key in SideConfig.LAYERED}
        with keys_of("encoder", ("num_layers", *own)):
            return SideConfig(**shared | own | {"num_layers": self.encoder_num_layers or self.num_layers})

    @property
    def sites(self) -> dict[str, AttentionSite]:
        """The sources look at each other, the targets at each other and at the sources."""
        return {
            "encoder": AttentionSite(self.encoder, "encoder_"),
            "decoder": AttentionSite(self, length=self.target_length),
            "cross": AttentionSite(self, "cross_", "cross_", self.target_length),
        }

    def uses(self, path: tuple[str, ...]) -> float:
        """The encoder's matrices, and those of what cross-attention looks at, once for each token of the sources."""
        of_sources = path[0] == "encoder" or ("cross" in path and path[-2] in ("key", "value"))
        return 1.0 if of_sources else (self.target_length or self.max_length) / self.max_length

    def build(self, rngs: nnx.Rngs) -> "EncoderDecoder":
        """The model of these sizes and choices."""
        return EncoderDecoder(self, rngs=rngs)


class Pairs(NamedTuple):
    """Sources and what is written of each, teacher-forced: `tokens_BT` are what the decoder reads, a start token first.

    Segment ids number the pairs of a row, the same on both sides, of which none sees another; 0 is padding, whatever
    stands there. Without them each row is one pair and has no padding. Positions restart with each pair, and are those
    that masks and biases speak of. `dropout_keys_B` (one key per row) turns dropout on.
    """

    sources_BS: jax.Array
    tokens_BT: jax.Array
    source_segment_ids_BS: jax.Array | None = None
    segment_ids_BT: jax.Array | None = None
    source_positions_BS: jax.Array | None = None
    positions_BT: jax.Array | None = None
    dropout_keys_B: jax.Array | None = None

    @classmethod
    def of(cls, batch: Mapping[str, jax.Array], dropout_keys_B: jax.Array | None = None) -> Self:
        """The pairs of a batch, whose arrays have these names without their axes."""
        names = {field: field.rpartition("_")[0] for field in cls._fields[:-1]}
        return cls(
            **{field: batch[name] for field, name in names.items() if name in batch}, dropout_keys_B=dropout_keys_B
        )


class EncoderDecoder(Module):
    """Pairs in, next-token logits of their second halves out.

    Raises:
        UserError: see EncoderDecoderConfig; when called, what `GPT` refuses, of either side.
    """

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs):
        dtype, start, use_bias = jnp.dtype(config.dtype), EMBEDDINGS[config.embedding], parse_use_bias(config.use_bias)
        self.config = config
        self.embed = Embedding(config.vocab_size, config.width, dtype=dtype, rngs=rngs, scaled=start.scaled)
        with keys_of("encoder", SideConfig.LAYERED):
            self.encoder = Side(config.encoder, rngs)
        self.decoder = Side(config, rngs)
        self.head = Head(config.width, config.vocab_size, tied=config.tied, bias=use_bias.head, rngs=rngs)

    def __call__(self, pairs: Pairs, taps: Taps | None = None) -> jax.Array:
        """Logits of the next token at each place, (B, T, V) in float32: what `readout` makes of the `vectors`."""
        return self.readout()(self.vectors(pairs, taps))

    def vectors(self, pairs: Pairs, taps: Taps | None = None) -> jax.Array:
        """What the model knows at each place that it writes, (B, T, D); at padding it is finite and means nothing."""
        taps = taps or Taps()
        x_BTD, contexts = self._decoder_start(pairs, self.encode(pairs, taps), taps)
        return taps("vectors", self._scaled(self.decoder.run(x_BTD, contexts, taps, "decoder")))

    def readout(self) -> Readout:
        """What turns vectors into logits."""
        return self.head.readout(self.embed, self.config.logits_soft_cap)

    def encode(self, pairs: Pairs, taps: Taps | None = None) -> jax.Array:
        """What the encoder makes of the sources, (B, S, D); of the pairs it reads nothing else."""
        taps = taps or Taps()
        return self.encoder.run(*self._encoder_start(pairs, within(taps, "encoder")), taps, "encoder")

    def init_cache(self, memory_BSD: jax.Array, source_segment_ids_BS: jax.Array | None, length: int) -> PairCaches:
        """An empty cache for at most `length` tokens of each row, with the keys and values of what `encode` has made of
        its source, where the ids are not 0.
        """
        reaches = self.config.cycles["mask"].map(lambda one: parse_mask(one).reach)
        own = empty_caches(self.config, len(memory_BSD), length, reaches)
        mask = full() if source_segment_ids_BS is None else padding(source_segment_ids_BS)
        return PairCaches(own, Memory(mask, seen=self.decoder.stack.remember(memory_BSD)))

    def decode(self, tokens_BT: jax.Array, positions_BT: jax.Array, cache: PairCaches) -> tuple[jax.Array, PairCaches]:
        """Logits (B, T, V) of new tokens at absolute positions, and the cache with them in it; see `GPT.decode`."""
        S = cache.length
        check_within(positions_BT, S, "position", f"is outside of a cache for {S}; make it longer")
        given = self.embed, self.config.vocab_size, tokens_BT, None, positions_BT
        x_BTD, contexts = self.decoder.start(*given, memory=cache.memory, decoding=True)
        # What is written outside of the cache is lost, and with it what the token sees of itself.
        x_BTD = jnp.where(((0 <= positions_BT) & (positions_BT < S))[..., None], x_BTD, jnp.nan)
        x_BTD, own = self.decoder.stack.decode(x_BTD, contexts, cache.own, positions_BT)
        return self.readout()(self._scaled(self.decoder.normed(x_BTD, untouched))), dataclasses.replace(cache, own=own)

    def attention_scores(
        self, batch: tuple[jax.Array, jax.Array, jax.Array], keys_B: jax.Array | None
    ) -> dict[str, list[Scores]]:
        """As that of other families, for sources and targets that are alike; segment 0 is padding."""
        tokens_BT, ids_BT, positions_BT = batch
        pairs = Pairs(*(tokens_BT,) * 2, *(ids_BT,) * 2, *(positions_BT,) * 2, keys_B)
        encoding, decoding = self._encoder_start(pairs)[1], self._decoder_start(pairs, None)[1]
        return {
            "encoder": self.encoder.stack.scores(encoding),
            "decoder": self.decoder.stack.scores(decoding),
            "cross": self.decoder.stack.scores(decoding, "cross"),
        }

    def attention(self, site: str, place: int) -> MultiHeadAttention:
        """The attention of a site in the first layer at a place of the unit of its stack."""
        if site == "cross":
            return self.decoder.stack.attention(place, site)
        return {"encoder": self.encoder, "decoder": self.decoder}[site].stack.attention(place)

    def cache_bytes(self, length: int) -> dict[str, Cycle[int]]:
        """As `Writer.cache_bytes`, also of the keys and values of a source of `length` tokens."""
        graphdef, params = nnx.split(self)
        source = jax.ShapeDtypeStruct((1, length, self.config.width), jnp.dtype(self.config.dtype))
        made = lambda params, x_BSD: nnx.merge(graphdef, params).init_cache(x_BSD, None, length)  # noqa: E731
        cache = jax.eval_shape(made, params, source)
        return {"decoder": cache.own.layer_bytes, "cross": Cycle((cache.memory_bytes,) * self.config.unit)}

    def _encoder_start(self, pairs: Pairs, tap: Tap = untouched) -> tuple[jax.Array, Cycle[Context]]:
        ids_BS, keys_B = pairs.source_segment_ids_BS, folded(pairs.dropout_keys_B, _ENCODER_SITE)
        given = pairs.sources_BS, ids_BS, pairs.source_positions_BS, keys_B, _valid(ids_BS)
        return self.encoder.start(self.embed, self.config.vocab_size, *given, tap=tap)

    def _decoder_start(
        self, pairs: Pairs, memory_BSD: jax.Array | None, taps: Tap = untouched
    ) -> tuple[jax.Array, Cycle[Context]]:
        ids_BT, memory = pairs.segment_ids_BT, Memory(_across(pairs), memory_BSD)
        given = pairs.tokens_BT, ids_BT, pairs.positions_BT, pairs.dropout_keys_B, _valid(ids_BT)
        tap = within(taps, "decoder")
        return self.decoder.start(self.embed, self.config.vocab_size, *given, memory=memory, tap=tap)

    def _scaled(self, x_BTD: jax.Array) -> jax.Array:
        scale = self.config.logits_scale or self.config.width**-0.5
        return x_BTD if scale == 1 else x_BTD * jnp.asarray(scale, x_BTD.dtype)


def _valid(ids: jax.Array | None) -> jax.Array | None:
    return None if ids is None else ids != 0


def _across(pairs: Pairs) -> Mask:
    """Which tokens of the sources the decoder's may look at: those of their own pairs, and no padding."""
    ids_BT, source_ids_BS = pairs.segment_ids_BT, pairs.source_segment_ids_BS
    if ids_BT is None and source_ids_BS is None:
        return full()
    ids_BT = jnp.ones_like(pairs.tokens_BT) if ids_BT is None else ids_BT
    source_ids_BS = jnp.ones_like(pairs.sources_BS) if source_ids_BS is None else source_ids_BS
    return segments(ids_BT, source_ids_BS) & padding(source_ids_BS)
