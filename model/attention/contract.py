"""What a core promises: for a request it is exact, or it refuses with a reason and a fix, before anything is traced."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention.scores import Scores
from model.attention.values import leaf_axes
from model.axes import check_axes, partition_spec, platform
from model.errors import UserError
from model.parameters import Module


class Refusal(NamedTuple):
    """Why a core does not compute a request, and what to write instead; both continue a sentence."""

    reason: str
    fix: str


Refusals = Iterator[Refusal]
Call = Callable[[jax.Array, jax.Array, jax.Array, Scores], jax.Array]


@dataclasses.dataclass(frozen=True)
class HeadSizes:
    """H query heads over G key heads of width K, and the dtype that they compute in."""

    H: int
    G: int
    K: int
    dtype: str


class CoreModule(Module):
    """A core with parameters: its attention layer builds it of its sizes, keeps it as `core`, and calls it like others.

    It makes its parameters in its constructor; they are stored as (layers that have it, ...), in the layers' order.
    """

    def __init__(self, sizes: HeadSizes, *, rngs: nnx.Rngs):
        self.sizes = sizes

    def __call__(self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
        """What each query takes of the values, o_BTHK: linear in v."""
        raise NotImplementedError


class RecurrentCore(CoreModule):
    """A core that goes on from a state while it decodes, instead of from all keys and values."""

    @staticmethod
    def empty(sizes: HeadSizes, layers: int, rows: int) -> Any:
        """The states of so many layers before the first token: a pytree of arrays (layers, rows, ...)."""
        raise NotImplementedError

    def decode(
        self, q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, scores: Scores, state: Any
    ) -> tuple[jax.Array, Any]:
        """The call for new tokens, which stand at `scores.query_positions_BT`, and the state after them.

        A row's tokens come in order. A token at position 0 begins its row anew, whatever the state holds, and one at a
        negative position is padding: it leaves the state as it is, and may hold NaN.
        """
        raise NotImplementedError


class Core(NamedTuple):
    """A core as the table knows it: the call, a generator of all that it refuses of a request, and where it is at home.

    The call is a function, or a class of modules where it has parameters.

    There it is tested: on that platform, in that dtype, with the sequence split over `context` devices. `evidence` says
    how: 'tested', forward and backward against float64; 'interpreted': the same, the kernel run by an interpreter on a
    CPU; 'untested'. `largest_score` is the largest power of two that a row's largest score may be near, either side of
    zero, for value and gradients to be exact in float32; infinity where any may be, None where nobody has measured.

    `reference` is what a run compares it with before it learns: 'dense', which says that it computes softmax attention,
    or its own formula, slow and plain, called alike (of a module: with that in front), or None, if there is none.
    """

    call: Call | type[CoreModule]
    refusals: Callable[["Request"], Refusals]
    platform: str = "cpu"
    dtype: str = "float32"
    context: int = 1
    evidence: str = "tested"
    largest_score: float | None = math.inf
    reference: Callable[..., jax.Array] | Literal["dense"] | None = "dense"

    @property
    def is_softmax(self) -> bool:
        """Whether it computes what `dense` does."""
        return self.reference == "dense"

    def refusal(self, request: "Request") -> Refusal | None:
        """The first that it refuses, or None: it is exact."""
        return next(self.refusals(request), None)


@dataclasses.dataclass(frozen=True)
class Request:
    """One call of attention, as far as it is known before tracing; the arrays in `scores` may be abstract.

    B, T, S, H, G and K are global sizes; `ways` says over how many devices a logical axis ('batch', 'length', 'heads',
    'kv_heads') is split, and `platform` where it will run ('cpu', 'gpu', 'tpu').
    """

    B: int
    T: int
    S: int
    H: int
    G: int
    K: int
    dtype: Any
    scores: Scores
    platform: str
    ways: dict[str, int]

    @classmethod
    def of(cls, q_BTHK: Any, k_BSGK: Any, v_BSGK: Any, scores: Scores) -> Self:
        """The request of a call, on the ambient mesh.

        Raises:
            UserError: ranks or shapes do not agree, or what the scores hold was made for other sizes.
        """
        for what, x, axes in (("queries", q_BTHK, "BTHK"), ("keys", k_BSGK, "BSGK"), ("values", v_BSGK, "BSGK")):
            check_axes(what, x, axes)
        (B, T, H, K), (S, G) = q_BTHK.shape, k_BSGK.shape[1:3]
        if not min(T, S):
            raise UserError(f"there are {T} queries and {S} keys: give at least one of each.")
        if k_BSGK.shape != (B, S, G, K) or v_BSGK.shape[:3] != (B, S, G) or H % G:
            raise UserError(
                f"queries {q_BTHK.shape}, keys {k_BSGK.shape} and values {v_BSGK.shape} do not agree: give them as "
                "(B, T, H, K), (B, S, G, K) and (B, S, G, K), G dividing H."
            )
        T_mask = T if scores.query_positions_BT is None else S
        wrong = scores.mask.misfit(B, H, T_mask, S)
        if wrong is None and scores.bias is not None:
            wrong = scores.bias.misfit(B, H, T_mask, S)
        wrong = wrong or _misfit(scores, B, T, H)
        if wrong is not None:
            raise UserError(f"{wrong}; make it for these sizes (in a config: --config.model.mask or model.bias).")
        return cls(B, T, S, H, G, K, jnp.dtype(q_BTHK.dtype), scores, platform(), ways())


def _misfit(scores: Scores, B: int, T: int, H: int) -> str | None:
    """What is said of arrays with other axes than they should have, or made for other rows or heads."""
    sizes = {"batch": (1, B), "heads": (1, H)}
    for names, x in zip(leaf_axes(scores), jax.tree.leaves(scores), strict=True):
        pairs = zip(names, x.shape, strict=False)
        if len(names) != x.ndim or any(name in sizes and n not in sizes[name] for name, n in pairs if name):
            axes = ", ".join(name or "..." for name in names)
            return f"an array {tuple(x.shape)} in the scores has not the axes ({axes}) of {B} rows and {H} heads"
    exact: list[tuple[str, Any, tuple[int, ...]]] = [
        ("sinks", scores.sinks_H, (H,)),
        ("keys of dropout", None if scores.dropout is None else scores.dropout.keys_BH2, (B, H, 2)),
        ("positions of queries", scores.query_positions_BT, (B, T)),
    ]
    wrong = [(what, x.shape, size) for what, x, size in exact if x is not None and x.shape != size]
    return next((f"{what} made for {shape} cannot serve {size}" for what, shape, size in wrong), None)


def ways() -> dict[str, int]:
    """Over how many devices of the ambient mesh each logical axis of attention is split."""
    mesh = jax.sharding.get_abstract_mesh()
    split = {}
    for name in ("batch", "length", "heads", "kv_heads"):
        axes = partition_spec((name,))[0] if not mesh.empty else None
        axes = (axes,) if isinstance(axes, str) else axes or ()
        split[name] = math.prod(mesh.shape[axis] for axis in axes)
    return split


class Choice(NamedTuple):
    """The core that computes a request, and what each faster one that `auto` looked at said."""

    name: str
    call: Call | type[CoreModule]
    refused: dict[str, Refusal]


def choose_core(cores: dict[str, Core], name: str, request: Request) -> Choice:
    """The core of that name if it is exact for the request, or for `auto` the first of all that is.

    `auto` takes none that is untested, and asks none that computes something else than softmax attention.

    Raises:
        UserError: it refuses, or all do.
    """
    refused: dict[str, Refusal] = {}
    for one in [one for one in cores if cores[one].is_softmax] if name == "auto" else [name]:
        no = cores[one].refusal(request)
        if no is None and name == "auto" and cores[one].evidence == "untested":
            no = Refusal("nobody has measured yet whether it is exact", f"write {one} to try it all the same")
        if no is None:
            return Choice(one, cores[one].call, refused)
        refused[one] = no
    if name == "auto":
        reasons = "; ".join(f"{one}: {no.reason}" for one, no in refused.items())
        raise UserError(f"--config.model.core='auto' finds no core that is exact here: {reasons}.")
    raise UserError(f"--config.model.core={name!r}: {refused[name].reason}; {refused[name].fix}.")


def needs(condition: bool, reason: str, fix: str) -> Refusals:
    """One refusal where the condition does not hold."""
    if not condition:
        yield Refusal(reason, fix)
