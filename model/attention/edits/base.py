"""What an edit is: two hooks around an attention core, of which one layer joins several by `&`."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model.axes import pin
from model.errors import UserError
from model.parameters import Module

if TYPE_CHECKING:  # which checks the edits of a config, and so knows them
    from model.attention.config import AttentionConfig

Handed = Mapping[str, jax.Array]
_AXES = {"B": "batch", "T": "length", "H": "heads", "G": "kv_heads", "K": None, "D": None}


class Edit(Module):
    """What is changed before the core of a layer, and after it; here, nothing.

    All arrays are of the layer's dtype. In cached decoding they are those of the new tokens, and what `before` returns
    is what is kept.
    """

    # What it hands on to later layers: a name to its axes, such as "BTGK", or "" for a number. All begin at zero.
    hands: ClassVar[Mapping[str, str]] = {}
    # Whether its layer makes its own keys and values; else they begin as what was handed on as `keys` and `values`.
    own_keys: ClassVar[bool] = True
    # Whether it needs values of the tokens of x, which cross-attention has not.
    own_tokens: ClassVar[bool] = False

    def __init__(self, config: "AttentionConfig", rngs: nnx.Rngs):
        pass

    def before(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array, handed: Handed
    ) -> tuple[jax.Array, jax.Array, jax.Array, Handed]:
        """Queries, keys and values before they are turned by their positions, and what is handed on, in its stead.

        x is what the layer projects; `handed` is what the layers before it have handed on, and is not to be changed.
        """
        return q_BTHK, k_BSGK, v_BSGK, handed

    def after(self, o_BTHK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """What the core has made, before the heads' gates and the output projection; v is what `before` returned."""
        return o_BTHK

    @classmethod
    def refusal(cls, config: "AttentionConfig") -> str | None:
        """Why it cannot be in such a layer, and what to do instead, as the end of a sentence; None: it can."""
        return None


class Part(NamedTuple):
    """An edit that is chosen: its name, below which its parameters live, and what makes it."""

    name: str
    kind: type[Edit]
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options)
        return f"{self.name}({options})" if options else self.name


@dataclasses.dataclass(frozen=True)
class Edits:
    """The edits of one layer, in their order.

    Raises:
        UserError: one of them stands twice.
    """

    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"--config.model.edits has {twice} twice in one layer; write it once.")

    def __and__(self, other: "Edits") -> "Edits":
        return Edits(self.parts + other.parts)

    def __str__(self) -> str:
        return " & ".join(map(str, self.parts)) or "none"

    @property
    def own_keys(self) -> bool:
        """Whether a layer with these makes its own keys and values."""
        return all(part.kind.own_keys for part in self.parts)

    def check(self, config: "AttentionConfig") -> None:
        """Lets a layer pass that can have them.

        Raises:
            UserError: one of them refuses.
        """
        for part in self.parts:
            if no := part.kind.refusal(config):
                raise UserError(f"--config.model.edits={str(config.edits)!r}: {no}.")

    def keep(self, layer: Module, config: "AttentionConfig", rngs: nnx.Rngs) -> None:
        """Makes the edits parts of a layer, by their names."""
        for part in self.parts:
            setattr(layer, part.name, part.kind(config, rngs, **dict(part.options)))

    def check_context(self, config: "AttentionConfig") -> None:
        """Lets cross-attention pass that can have them.

        Raises:
            UserError: one of them needs keys and values of the tokens.
        """
        for part in self.parts:
            if part.kind.own_tokens or not part.kind.own_keys:
                raise UserError(
                    f"--config.model.edits={str(config.edits)!r}: {part.name} needs keys and values of the tokens "
                    "themselves, which cross-attention has not; leave it out there."
                )

    def handed(self, handed: Handed | None, config: "AttentionConfig", x_BTD: jax.Array, y_BSD: jax.Array) -> Handed:
        """What the layers before have handed on; of a layer alone, zeros.

        Raises:
            UserError: y is not x, and one of them needs values of the tokens of x; or keys are taken that nobody gave.
        """
        if y_BSD is not x_BTD:
            self.check_context(config)
        if not handed and not self.own_keys:
            raise UserError(
                f"--config.model.edits={str(config.edits)!r} takes keys and values of a layer before it, and none are "
                "handed on to it; give `handed` with keys and values, or take it as part of a stack."
            )
        return handed or nothing_handed([self], config, x_BTD)

    def before(
        self,
        layer: Any,
        q_BTHK: jax.Array,
        k_BSGK: jax.Array,
        v_BSGK: jax.Array,
        x_BTD: jax.Array,
        handed: Handed,
    ) -> tuple[jax.Array, jax.Array, jax.Array, Handed]:
        """What `before` of all edits of a layer makes of these, in turn."""
        for part in self.parts:
            edit = getattr(layer, part.name)
            q_BTHK, k_BSGK, v_BSGK, handed = edit.before(q_BTHK, k_BSGK, v_BSGK, x_BTD, handed)
        return q_BTHK, k_BSGK, v_BSGK, handed

    def after(self, layer: Any, o_BTHK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """What `after` of all edits of a layer makes of the core's output, in turn."""
        for part in self.parts:
            o_BTHK = getattr(layer, part.name).after(o_BTHK, v_BSGK, x_BTD)
        return o_BTHK


def edit(name: str, kind: type[Edit], **options: Any) -> Edits:
    """The value of one edit; `options` go to its constructor."""
    return Edits((Part(name, kind, tuple(options.items())),))


def nothing_handed(edits: Iterable[Edits], config: "AttentionConfig", x_BTD: jax.Array) -> Handed:
    """Zeros for all that layers with these edits hand on: what the first of them gets."""
    (B, T, D), H = x_BTD.shape, config.num_heads
    sizes = {"B": B, "T": T, "D": D, "H": H, "G": config.num_kv_heads or H, "K": config.K}
    slots = {name: axes for one in edits for part in one.parts for name, axes in part.kind.hands.items()}
    empty = {name: jnp.zeros([sizes[axis] for axis in axes], config.dtype) for name, axes in slots.items()}
    return {name: pinned(x, slots[name]) for name, x in empty.items()}


def pinned(x: jax.Array, axes: str) -> jax.Array:
    """An array with these axes, such as "BTGK", split over the mesh as their names say."""
    return pin(x, *(_AXES[axis] for axis in axes)) if axes else x
