"""Attention flow: how much can get from a token to a place at all, through all layers (Abnar and Zuidema 2020,
section 3).

Nodes are places behind layers; from place i behind layer l an edge goes to place k behind layer l - 1, whose capacity
is what `rollout.mixed` has there. The value for (i, j) is the maximum flow from i behind the last layer to j before the
first. It is unique; how it flows is not, so what is shown of that is one of many.

Most pairs need no search. Bounded by what can get to a node at most, and on from it, a pair has an upper bound, which
on trained models is nearly always met; and flows of the form y[k] A[k, m] x[m], which keep what comes in, are found for
all pairs at once by scaling rows and columns in turn (Sinkhorn and Knopp 1967). Where both agree, that is the value.
The other pairs are solved by SciPy, between causal tokens on those that lie between them.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from eval.explain.capture import capture
from eval.explain.methods.rollout import fused, mixed
from model.errors import UserError
from model.families.family import Model

UNITS = 2**26  # of capacities, which SciPy wants as int32
CLOSE = 1e-6  # bounds that differ by less are the same: 67 units
TURNS = 16  # of scaling
# How many layers share what they have by their capacities, at the last and at the first: turns that meet the most cuts
# of trained models, of those that are left, where maps are causal and where they are not.
ENDS = {True: ((1, 4), (1, 1), (1, 6), (3, 2)), False: ((2, 3), (1, 6), (2, 4), (1, 3))}
BUDGET = 2**30  # bytes, if nobody says otherwise
SEARCH = 22e-9  # seconds of a search, for each edge
ARRAYS = 12  # of (pairs, n) float64, that are in memory together


class Flow(NamedTuple):
    """The maximum flow from place i (of `places`) to each token, `values_Rn`; the shares of pairs whose bounds agreed,
    and of those that are `saturated`: their value is all that i gives or that j takes, whatever is between.
    """

    values_Rn: np.ndarray
    places: np.ndarray
    bounded: float
    saturated: float


class Cut(NamedTuple):
    """One pair: its value, a flow that has it (one of many), (L, n, n), and the edges of a cut, (L, n, n), whose
    capacities sum to it: the proof that there is no larger one. The first layer comes first.
    """

    value: float
    flow_Lnn: np.ndarray
    cut_Lnn: np.ndarray


def attention_flow(
    model: Model,
    *,
    places: Any = None,
    residual: float = 0.5,
    fusion: str = "mean",
    budget: int = BUDGET,
    **inputs: Any,
) -> list[Flow]:
    """The flow of each row of a model of one stack, at these places (all, if nobody says otherwise).

    Raises:
        UserError: a model of pairs or a recurrent one, or more bytes than the budget.
    """
    if "self" not in model.config.sites:
        raise UserError("attention_flow: it is defined for one stack of attention; take rollout, or gradients.")
    maps_LBnn = _maps(model, fusion, residual, inputs)
    return [flow(maps_Lnn, places, budget) for maps_Lnn in np.asarray(maps_LBnn, np.float64).swapaxes(0, 1)]


def _maps(model: Model, fusion: str, residual: float, inputs: dict[str, Any]) -> jax.Array:
    site = "stack.attention.weights"
    weights_LBnn = capture(model, [site], reduce=_fused(fusion), **inputs)[site]
    return jax.vmap(lambda weights_Bnn: mixed(weights_Bnn, residual))(weights_LBnn)


@functools.cache  # so that what is compiled with it is found again
def _fused(fusion: str) -> Any:
    return functools.partial(fused, fusion=fusion)


def flow(maps_Lnn: np.ndarray, places: Any = None, budget: int = BUDGET) -> Flow:
    """The flow through maps (L, n, n) of capacities, the first layer first, from these places to all tokens.

    Raises:
        UserError: more bytes than the budget; it says how many places fit.
    """
    maps_Lnn = np.asarray(maps_Lnn, np.float64)
    L, n, _ = maps_Lnn.shape
    places = np.arange(n) if places is None else np.atleast_1d(places)
    one, search = ARRAYS * 8 * n * n, n * L * n * n * SEARCH
    if one * len(places) > budget:
        raise UserError(
            f"attention flow of {len(places)} places and {n} tokens takes {one * len(places):,} bytes and up to "
            f"{search * len(places):,.0f} s, and the budget is {budget:,} bytes; ask for {max(budget // one, 1)} "
            "places at a time."
        )
    upper_Rn = upper_bounds(maps_Lnn, places)
    i_P, j_P = (x.ravel() for x in np.meshgrid(places, np.arange(n), indexing="ij"))
    values_P, upper_P = upper_Rn.ravel().copy(), upper_Rn.ravel()
    open_P = upper_P > CLOSE
    causal = not bool(np.triu(maps_Lnn, 1).any())
    for last, first in ENDS[causal] if L > 1 else ():
        here = np.flatnonzero(open_P)
        lower_P = lower_bounds(maps_Lnn, i_P[here], j_P[here], min(last, L - 1), min(first, max(L - last, 1)), causal)
        open_P[here] = lower_P < upper_P[here] - CLOSE
    open_P &= L > 1
    solver = _Solver(maps_Lnn, causal)
    for pair in np.flatnonzero(open_P):
        values_P[pair] = solver.value(i_P[pair], j_P[pair])
    ends_P = np.minimum(maps_Lnn[-1].sum(1)[i_P], maps_Lnn[0].sum(0)[j_P])
    return Flow(
        values_P.reshape(upper_Rn.shape), places, float(1 - open_P.mean()), float((values_P >= ends_P - CLOSE).mean())
    )


def upper_bounds(maps_Lnn: np.ndarray, places: np.ndarray) -> np.ndarray:
    """What no flow from these places to each token exceeds, (R, n): behind each layer, the sum over its nodes of what
    can get there at most, or on from there, if that is less.
    """
    L = len(maps_Lnn)
    reach_Rn = maps_Lnn[L - 1][places]
    onwards = [maps_Lnn[0]]
    for map_nn in maps_Lnn[1:]:
        onwards.append(np.minimum(map_nn[:, :, None], onwards[-1][None]).sum(1))
    upper_Rn = np.minimum(reach_Rn.sum(1)[:, None], onwards[L - 1][places])
    for layer in range(L - 1, 0, -1):
        upper_Rn = np.minimum(upper_Rn, np.minimum(reach_Rn[:, :, None], onwards[layer - 1][None]).sum(1))
        reach_Rn = np.minimum(reach_Rn[:, :, None], maps_Lnn[layer - 1][None]).sum(1)
    return np.minimum(upper_Rn, reach_Rn) if L > 1 else reach_Rn


def lower_bounds(
    maps_Lnn: np.ndarray, i_P: np.ndarray, j_P: np.ndarray, last: int = 1, first: int = 1, causal: bool = False
) -> np.ndarray:
    """What a flow brings from i to j, (P,), that is found without a search.

    In the `last` layers, what comes into a node goes on by the capacities of its edges, and in the `first` ones what a
    node is to give is taken by those of the edges into it; where maps are causal, of edges between j and i alone.
    Between them flow y[k] A[k, m] x[m], where y comes down and x up through the layers: what comes into a node is y x,
    and so is what leaves it, and no edge has more than it holds where y x is at most 1. In turn, x is scaled so that
    all that the first layers ask for comes, and y so that no more goes than the last ones bring.
    """
    n = maps_Lnn.shape[1]
    from_j_Pn, to_i_Pn = (np.arange(n) >= j_P[:, None], np.arange(n) <= i_P[:, None]) if causal else (True, True)
    row_Pn, column_Pn = maps_Lnn[-1][i_P] * from_j_Pn, maps_Lnn[0].T[j_P] * to_i_Pn
    for map_nn in maps_Lnn[-2 : -last - 1 : -1]:
        room_Pn = np.cumsum(map_nn[:, ::-1], axis=1)[:, ::-1].T[j_P] if causal else map_nn.sum(1)[None]
        row_Pn = (np.minimum(row_Pn, room_Pn) * _inverse(room_Pn)) @ map_nn * from_j_Pn
    for map_nn in maps_Lnn[1:first]:
        room_Pn = np.cumsum(map_nn, axis=0)[i_P] if causal else map_nn.sum(0)[None]
        column_Pn = (np.minimum(column_Pn, room_Pn) * _inverse(room_Pn)) @ map_nn.T * to_i_Pn
    inner = maps_Lnn[first : len(maps_Lnn) - last][::-1]
    through = functools.reduce(np.matmul, inner, np.eye(n))
    a_Pn = np.ones_like(row_Pn)
    for _ in range(TURNS):
        b_Pn = _inverse((a_Pn * row_Pn) @ through)
        a_Pn = np.minimum(1, _inverse((b_Pn * column_Pn) @ through.T, 1))
    down, up = [a_Pn * row_Pn], [b_Pn * column_Pn]
    for map_nn in inner:
        down.append(down[-1] @ map_nn)
    for map_nn in inner[::-1]:
        up.append(up[-1] @ map_nn.T)
    most_P = np.maximum((a_Pn * up[-1]).max(1), (b_Pn * down[-1]).max(1))
    for y_Pn, x_Pn in zip(down[:-1], up[-2::-1], strict=True):
        most_P = np.maximum(most_P, (y_Pn * from_j_Pn).max(1) * (x_Pn * to_i_Pn).max(1))
    return (row_Pn * a_Pn * up[-1]).sum(1) / np.maximum(most_P, 1)


def _inverse(x: np.ndarray, of_nothing: float = 0.0) -> np.ndarray:
    return np.divide(1, x, out=np.full_like(x, of_nothing), where=x > 1e-30)


class _Solver:
    """SciPy's maximum flow (Dinitz) on maps in units."""

    def __init__(self, maps_Lnn: np.ndarray, causal: bool) -> None:
        self.units_Lnn, self.causal = np.round(maps_Lnn * UNITS).astype(np.int32), causal
        self.graphs = dict[int, tuple[np.ndarray, ...]]()

    def value(self, i: int, j: int) -> float:
        """The maximum flow from i behind the last layer to j before the first."""
        return float(self.solved(i, j)[0].flow_value) / UNITS

    def solved(self, i: int, j: int) -> tuple[Any, csr_matrix, int, int]:
        """SciPy's answer, its graph, and the tokens of the window that it is of: the first, and how many."""
        first, n = (j, i - j + 1) if self.causal else (0, self.units_Lnn.shape[1])
        L = len(self.units_Lnn)
        layers, rows, columns, indices, starts = self._edges(n)
        there = self.units_Lnn[:, first : first + n, first : first + n]
        graph = csr_matrix((there[layers, rows, columns], indices, starts), shape=((L + 1) * n,) * 2)
        return maximum_flow(graph, L * n + i - first, j - first), graph, first, n

    def _edges(self, n: int) -> tuple[np.ndarray, ...]:
        """The edges of a window of n tokens: layers, rows and columns, and where they stand in a sparse matrix."""
        if n not in self.graphs:
            L = len(self.units_Lnn)
            shown = np.tril(np.ones((n, n), bool)) if self.causal else np.ones((n, n), bool)
            layers, rows, columns = np.nonzero(np.broadcast_to(shown, (L, n, n)))
            starts = np.searchsorted((layers + 1) * n + rows, np.arange((L + 1) * n + 1)).astype(np.int32)
            self.graphs[n] = layers, rows, columns, (layers * n + columns).astype(np.int32), starts
        return self.graphs[n]


def pair_flow(maps_Lnn: np.ndarray, i: int, j: int) -> Cut:
    """The flow from place i to token j with its proof."""
    L, n, _ = maps_Lnn.shape
    solver = _Solver(np.asarray(maps_Lnn, np.float64), causal=False)
    found, graph, _, _ = solver.solved(i, j)
    rest = (graph - found.flow).maximum(0).tocsr()
    rest.eliminate_zeros()
    reached = np.zeros((L + 1) * n, bool)
    reached[breadth_first_order(rest, L * n + i, return_predecessors=False)] = True
    side = reached.reshape(L + 1, n)
    dense = np.maximum(found.flow.toarray(), 0).reshape(L + 1, n, L + 1, n)
    flow_Lnn = np.stack([dense[layer + 1, :, layer] for layer in range(L)]) / UNITS
    cut_Lnn = side[1:, :, None] & ~side[:-1, None] & (maps_Lnn > 0)
    return Cut(found.flow_value / UNITS, flow_Lnn, cut_Lnn)
