"""What a family of models is to all that trains, evaluates and shows it: its keys, and where it attends."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from flax import nnx

from model.attention import AttentionConfig, Mask, full, parse_mask
from model.cycles import Cycle
from model.errors import Range, check_range, keys_of
from model.stack.config import SideConfig


class AttentionSite(NamedTuple):
    """Where a model attends: in all layers of a stack, to their own tokens or to a memory.

    Its own keys of a config begin with `keys`, and those of `stack` with `own`. In training it has `length` queries, as
    many as the stack takes if that is 0.
    """

    stack: SideConfig
    keys: str = ""
    own: str = ""
    length: int = 0

    @property
    def queries(self) -> int:
        """How many queries it has in training."""
        return self.length or self.stack.max_length

    @property
    def cores(self) -> Cycle[str]:
        """The names of the cores that the layers take in turn."""
        return self.stack.cycles[f"{self.own}core"]

    def attention(self, place: int) -> AttentionConfig:
        """The sizes and choices of a layer at a place of the stack's unit."""
        return self.stack.at(place).attention(own=self.own)

    def mask(self, place: int) -> Mask:
        """What a query sees there; of a memory, all."""
        return full() if self.own else parse_mask(self.stack.cycles["mask"][place])

    @property
    def places(self) -> Cycle[int]:
        """For each place of the unit, the first one whose layers are equal to its own."""
        alike = [self.stack.at(place) for place in range(self.stack.unit)]
        return Cycle(tuple(alike.index(one) for one in alike))

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Refusals from inside name the keys as this site has them."""
        with keys_of(self.keys.rstrip("_"), SideConfig.LAYERED) if self.keys else contextlib.nullcontext():
            yield


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """The keys of a kind of models: a field with a default is a key of `config.model`, data give the others.

    HEADS are what its model can have for a task, those that LAYERED names may be cycles over the layers, and IN_TURN
    says whether it takes a sequence token by token, which devices then cannot share.
    """

    HEADS: ClassVar[tuple[str, ...]] = ()
    LAYERED: ClassVar[dict[str, type]] = {}
    IN_TURN: ClassVar[bool] = False

    vocab_size: int
    max_length: int
    num_layers: int
    width: int
    dtype: str

    def build(self, rngs: nnx.Rngs) -> Any:
        """The model of these sizes and choices."""
        raise NotImplementedError

    @property
    def sites(self) -> dict[str, AttentionSite]:
        """Where it attends by a core of the contract, by name."""
        return {}

    @property
    def axes(self) -> dict[str, tuple[int, str]]:
        """Logical axis of a parameter, beside width and vocabulary, to its size, which a mesh is to divide, and the key
        that sets it.
        """
        return {}

    def uses(self, path: tuple[str, ...]) -> float:
        """How often a matrix is used in training, per token of the longest sequence."""
        return 1.0

    @property
    def other_flops(self) -> float:
        """Those of a training step, per such token, that neither a matrix nor a site stands for."""
        return 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrunkConfig(SideConfig, Family):
    """A stack and a vocabulary of `vocab_size` tokens.

    Raises:
        UserError: as SideConfig.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("config.data.vocab_size", self.vocab_size, Range(1, 2**24))

    @property
    def sites(self) -> dict[str, AttentionSite]:
        """Its tokens look at each other."""
        return {"self": AttentionSite(self)}


Model = Any  # what `build` makes: `vectors`, `readout` or answers, and where it attends `attention_scores`
