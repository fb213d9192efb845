"""The sizes and choices that all families share."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax

from model.attention import AttentionConfig, AttentionKeys, parse_bias, parse_mask
from model.cycles import Cycle, read_cycle
from model.errors import Range, UserError, check_range, check_ranges
from model.layers import ACTIVATIONS, choose
from model.norms import parse_norm
from model.positions import parse_position
from model.stack.residuals import NORM_PLACES
from model.vocabulary import EMBEDDINGS

REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Beyond what anybody has trained, and within what is traced, or refused for its memory, in a moment.
_RANGES = {
    "num_layers": Range(1, 10_000),
    "width": Range(1, 2**20),
    "num_heads": Range(1, 2**20),
    "num_kv_heads": Range(1, 2**20, zero="as many as num_heads"),
    "head_width": Range(1, 2**16, zero="width / num_heads"),
    "mlp_width": Range(1, 2**22, zero="4 x width"),
    "dropout": Range(0, 1, below=True),
    "unroll": Range(1, 256),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig(AttentionKeys):
    """The sizes and choices of a stack: keys of a config with their defaults, of which `--help` prints the comments.

    Those that LAYERED names may be cycles over the layers (see `model.cycles`), as text or as values.

    Raises:
        UserError: sizes that do not fit each other, a choice that does not exist, or a cycle longer than the depth.
    """

    # What one layer takes is of this kind; a text of a cycle of numbers is read as such.
    LAYERED: ClassVar[dict[str, type]] = {
        "core": str,
        "scale": float,
        "soft_cap": float,
        "sinks": bool,
        "edits": str,
    }

    # Whether each layer also looks at a memory; then keys that begin with `cross_` say how.
    has_cross: ClassVar[bool] = False

    num_layers: int = 4  # L, layers
    mlp_width: int = 0  # F, hidden width of the MLP; 0: 4 x width
    mlp: str = "gelu"  # gelu, gelu_exact, relu, relu2 or silu; gated: geglu, geglu_exact, reglu or swiglu
    norm: Any = "rms"  # rms, layer or rms_plus_one (scale stored as its distance from one); rms(1e-5): epsilon
    norm_place: str = "pre"  # pre, post, output, sandwich, parallel or parallel_shared (model/stack/residuals.py)
    remat: str = "none"  # what the backward pass computes again: none, dots (all but matrix products) or full
    unroll: int = 1  # layers per iteration of the scan over layers; num_layers: unrolled

    def __post_init__(self) -> None:
        check_ranges("config.model", self, _RANGES)
        if not self.head_width and self.width % self.num_heads:
            raise UserError(
                f"--config.model.num_heads={self.num_heads} does not divide --config.model.width={self.width}; change "
                "one of them, or set --config.model.head_width."
            )
        self._check_cycles()
        if self.unit > 1:
            for place in range(self.unit):
                self.at(place)
        else:
            self.attention()
        choose(REMAT, self.remat, "model.remat")
        choose(ACTIVATIONS, self.mlp, "model.mlp")
        choose(NORM_PLACES, self.norm_place, "model.norm_place")
        parse_norm(self.norm)
        choose({"float32": None, "bfloat16": None, "float16": None}, self.dtype, "model.dtype")

    @functools.cached_property
    def cycles(self) -> dict[str, Cycle[Any]]:
        """Each key of LAYERED to what the layers take in turn."""
        return {key: read_cycle(getattr(self, key), f"model.{key}", kind) for key, kind in self.LAYERED.items()}

    @property
    def axes(self) -> dict[str, tuple[int, str]]:
        """See `Family`."""
        return {
            "heads": (self.num_heads, "model.num_heads"),
            "kv_heads": (self.num_kv_heads or self.num_heads, "model.num_kv_heads"),
            "mlp": (self.mlp_width or 4 * self.width, "model.mlp_width"),
        }

    @property
    def unit(self) -> int:
        """After how many layers all cycles begin anew: their least common multiple."""
        return math.lcm(*map(len, self.cycles.values()))

    def at(self, layer: int) -> Self:
        """The same without cycles: with what one layer takes."""
        return dataclasses.replace(self, **{key: one[layer] for key, one in self.cycles.items()})

    def attention(self, gain: float = 1.0, own: str = "") -> AttentionConfig:
        """What an attention layer takes of this, if all take the same, and how much smaller its output projection
        starts. `own` begins the names of the keys that it has for itself, such as `cross_`; it shares the others.
        """
        keys = {field.name: getattr(self, field.name) for field in dataclasses.fields(AttentionKeys)}
        keys |= {key: self.cycles[own + key][0] for key in keys if own + key in self.cycles}
        return AttentionConfig(**keys, gain=gain)

    def _check_cycles(self) -> None:
        if self.unit <= self.num_layers:
            return
        lengths = {f"--config.model.{key}": len(one) for key, one in self.cycles.items() if len(one) > 1}
        told = " and ".join(f"{flag} ({length})" for flag, length in lengths.items())
        begin = f", which begin together anew after {self.unit} layers," if len(lengths) > 1 else ""
        raise UserError(
            f"the layers' cycle of {told}{begin} is longer than --config.model.num_layers={self.num_layers}; shorten "
            "it, or take more layers."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideConfig(StackConfig):
    """A stack, and how its tokens, at most `max_length`, know where they are and what they see.

    Raises:
        UserError: as StackConfig, and for an unknown position, bias or mask.
    """

    LAYERED: ClassVar = StackConfig.LAYERED | {"position": str, "bias": str, "mask": str}

    max_length: int
    position: Any = "rope"  # rope, rope_linear, rope_ntk, rope_yarn(4, 2048), rope_llama3, learned, sinusoidal or none
    bias: Any = "none"  # added to scores by distance: none, alibi, t5, t5_causal, kerple, kerple_power or fire
    mask: Any = "causal"  # which keys a query sees: causal & window(128), strided(64), ... joined by &, | and ~
    embedding: str = "plain"  # plain, scaled (times sqrt(width)) or normed (normalised before the first layer)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("config.data.length", self.max_length, Range(1, 2**24))
        choose(EMBEDDINGS, self.embedding, "model.embedding")
        for key, parse in (("position", parse_position), ("bias", parse_bias), ("mask", parse_mask)):
            self.cycles[key].map(parse)
