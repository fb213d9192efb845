"""The sizes and choices that all families share."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from model.attention import AttentionConfig, AttentionKeys
from model.errors import Range, UserError, check_ranges
from model.layers import NORMS, choose

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
    "mlp_width": Range(1, 2**22, zero="4 x width"),
    "dropout": Range(0, 1, below=True),
    "unroll": Range(1, 256),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig(AttentionKeys):
    """The sizes and choices of a stack: keys of a config with their defaults, of which `--help` prints the comments.

    Raises:
        UserError: sizes that do not fit each other, or a choice that does not exist.
    """

    num_layers: int = 4  # L, layers
    mlp_width: int = 0  # F, hidden width of the MLP; 0: 4 x width
    mlp: str = "gelu"  # gelu, relu2, geglu or swiglu
    norm: str = "rms"  # rms or layer
    norm_place: str = "pre"  # pre or post: normalise before each block, or after the residual sum
    remat: str = "none"  # what the backward pass computes again: none, dots (all but matrix products) or full
    unroll: int = 1  # layers per iteration of the scan over layers; num_layers: unrolled

    def __post_init__(self) -> None:
        check_ranges("config.model", self, _RANGES)
        if self.width % self.num_heads:
            raise UserError(
                f"--config.model.num_heads={self.num_heads} does not divide --config.model.width={self.width}."
            )
        choose(REMAT, self.remat, "model.remat")
        choose(NORMS, self.norm, "model.norm")
        choose({"pre": None, "post": None}, self.norm_place, "model.norm_place")
        choose({"float32": None, "bfloat16": None, "float16": None}, self.dtype, "model.dtype")

    @property
    def head_width(self) -> int:
        """K, the width of one head."""
        return self.width // self.num_heads

    def attention(self, gain: float = 1.0) -> AttentionConfig:
        """What one attention layer takes of this, and how much smaller its output projection starts."""
        keys = {field.name: getattr(self, field.name) for field in dataclasses.fields(AttentionKeys)}
        return AttentionConfig(**keys, head_width=self.head_width, gain=gain)
