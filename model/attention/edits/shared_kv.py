"""Keys and values that several layers attend to."""

from typing import TYPE_CHECKING, ClassVar

import jax

from model.attention.edits.base import Edit, Edits, Handed, edit, pinned

if TYPE_CHECKING:
    from model.attention.config import AttentionConfig


class GiveKV(Edit):
    """Hands its layer's keys and values on to those that take them (cross-layer attention, Brandon et al. 2024)."""

    hands: ClassVar = {"keys": "BTGK", "values": "BTGK"}
    own_tokens: ClassVar = True

    def before(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array, handed: Handed
    ) -> tuple[jax.Array, jax.Array, jax.Array, Handed]:
        """All as it is, keys and values handed on."""
        own = {"keys": pinned(k_BSGK, self.hands["keys"]), "values": pinned(v_BSGK, self.hands["values"])}
        return q_BTHK, k_BSGK, v_BSGK, {**handed, **own}

    @classmethod
    def refusal(cls, config: "AttentionConfig") -> str | None:
        """Edits behind it, which could make other keys of what is given than the layer itself attends to."""
        parts = config.edited.parts
        if parts[-1].kind is cls:
            return None
        return f"give_kv gives what the others have made, and stands last; write {parts[-1].name} before it"


class TakeKV(Edit):
    """A layer without projections of keys and values, which takes them from the nearest before it that gives them.

    Brandon et al. 2024, section 3. It keeps nothing of its own while it decodes.
    """

    own_keys: ClassVar = False


def give_kv() -> Edits:
    """Keys and values for later layers too."""
    return edit("give_kv", GiveKV)


def take_kv() -> Edits:
    """Keys and values of the nearest layer before it in the cycle that has give_kv."""
    return edit("take_kv", TakeKV)
