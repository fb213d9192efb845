"""The keys of a config that an attention layer reads."""

import dataclasses
import functools
from typing import Any

from model.attention.contract import HeadSizes
from model.attention.cores.table import check_name
from model.attention.edits.base import Edits
from model.attention.edits.table import parse_edits
from model.errors import Range, UserError, check_ranges
from model.use_bias import parse_use_bias

_RANGES = {
    "scale": Range(1e-6, 1e6, zero="1/sqrt(head width)"),
    "soft_cap": Range(1e-6, 1e6, zero="none"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionKeys:
    """The keys of a config that an attention layer reads, with their defaults; `--help` prints the comments."""

    width: int = 256  # D, width of the residual stream
    num_heads: int = 4  # H, query heads
    num_kv_heads: int = 0  # G, key and value heads; divides num_heads; 0: as num_heads
    head_width: int = 0  # K, width of a head; 0: width / num_heads
    core: str = "auto"  # how attention is computed: auto, or a core of launch.attention --table, which works or raises
    scale: float = 0.0  # factor on the attention scores; 0: 1/sqrt(head width)
    soft_cap: float = 0.0  # c of c tanh(score / c), which bounds attention scores; 0: none
    sinks: bool = False  # one learned score per head that no value stands behind
    edits: Any = "none"  # around the core, joined by &: qk_norm, output_gate, value_residual, exclusive, give_kv, ...
    use_bias: bool | str = False  # false, true (all but head's), or of which: qkv & output & mlp & norm & head
    dropout: float = 0.0  # share of activations dropped in training
    dtype: str = "float32"  # dtype of the computation; parameters are always float32

    @property
    def K(self) -> int:
        """The width of a head."""
        return _width_of_a_head(self)


def _width_of_a_head(config: AttentionKeys) -> int:
    # Said whenever it is asked for, so that a config whose width is replaced takes its heads along.
    return config.head_width or config.width // config.num_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig(AttentionKeys):
    """The sizes and choices of one attention layer.

    `gain` scales the first values of the output projection.

    Raises:
        UserError: G does not divide H, the core is unknown, the scale or the soft cap is out of range, or an edit is
            unknown or refuses.
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        heads, kv_heads = self.num_heads, self.num_kv_heads or self.num_heads
        if kv_heads < 1 or heads % kv_heads:
            raise UserError(f"--config.model.num_kv_heads={kv_heads} does not divide --config.model.num_heads={heads}.")
        check_ranges("config.model", self, _RANGES)
        check_name(self.core)
        parse_use_bias(self.use_bias)
        self.edited.check(self)

    @functools.cached_property
    def edited(self) -> Edits:
        """The edits around the core."""
        return parse_edits(self.edits)

    @property
    def own_keys(self) -> bool:
        """Whether the layer projects keys and values itself."""
        return self.edited.own_keys

    @property
    def sizes(self) -> HeadSizes:
        """What a core with parameters is built of."""
        return HeadSizes(self.num_heads, self.num_kv_heads or self.num_heads, self.K, self.dtype)
