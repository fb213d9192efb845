"""What captum, `transformers`, networkx, igraph and SciPy say, for test_peers.py: run by the Python of `.cache/oracle`,
as tests/model/peers.py is, in float64.
"""

import sys
from collections.abc import Callable
from typing import Any

import igraph
import networkx
import numpy as np
import torch
from captum.attr import LayerIntegratedGradients
from captum.metrics import infidelity, sensitivity_max
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from tests.model.peers import Arrays, built, main

UNITS = 2**26  # of capacities, for SciPy, which takes whole numbers


def explained(asked: dict[str, Any], arrays: Arrays) -> Arrays:
    """The attention of a causal model or a classifier of given weights; integrated gradients by a rule of so many
    nodes, gradients, and the infidelity and the largest sensitivity where maps, choices and shifts are given.
    """
    names = ("tokens", "rest", "places", "answers", "baseline", "map", "taken", "shifts")
    given = {name: torch.tensor(arrays.pop(name)) for name in names}
    rest = {"attention_mask": given["rest"]} if asked["classes"] else {}
    kind = AutoModelForSequenceClassification if asked["classes"] else AutoModelForCausalLM
    model = built(kind, asked, arrays)
    B, N, _ = given["taken"].shape

    def said(rows: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Of inputs that are made of these rows."""
        numbers = torch.arange(len(rows))
        logits = model(**inputs, **{name: x[rows] for name, x in rest.items()}).logits
        logits = logits if asked["classes"] else logits[numbers, given["places"][rows]]
        return logits[numbers, given["answers"][rows]]

    def each(x: torch.Tensor) -> torch.Tensor:
        """The row that each of as many was made of, one after the other."""
        return torch.arange(B).repeat_interleave(len(x) // B)

    layer = model.get_input_embeddings()
    real = given["rest"].bool()
    x, base = (torch.where(real[..., None], layer(given[name]), 0).detach() for name in ("tokens", "baseline"))
    by_rule = LayerIntegratedGradients(lambda tokens, rows: said(rows, input_ids=tokens), layer)
    rule = {"n_steps": asked["nodes"], "method": "gausslegendre"}
    integrated = by_rule.attribute(given["tokens"], given["baseline"], additional_forward_args=torch.arange(B), **rule)

    @torch.enable_grad()  # which captum turns off
    def slopes(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(said(each(x), inputs_embeds=x).sum(), x)[0]

    def along(x: torch.Tensor) -> torch.Tensor:
        return (slopes(x) * x).sum(-1)

    def kept(keep: torch.Tensor) -> torch.Tensor:
        rows = each(keep)
        return said(rows, inputs_embeds=base[rows] + keep[..., None] * (x - base)[rows])

    def taken_out(keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        taken = given["taken"].flatten(0, 1).double()
        return taken, keep - taken

    all_kept, attentions = torch.ones_like(given["map"]), model(given["tokens"], **rest, output_attentions=True)
    found = {
        "attention": torch.stack(attentions.attentions),
        "integrated": integrated.sum(-1),
        "gradient": slopes(x).norm(dim=-1),
        "gradient_x_input": along(x),
        "sensitivity": sensitivity_max(
            lambda xs: (along(xs[0]),), x, lambda x: (x + given["shifts"].flatten(0, 1),), n_perturb_samples=N
        ),
    }
    for name, scaled in (("infidelity", False), ("scaled", True)):
        found[name] = infidelity(kept, taken_out, all_kept, given["map"], n_perturb_samples=N, normalize=scaled)
    return {name: one.detach().numpy() for name, one in found.items()}


def pairs(asked: dict[str, Any], arrays: Arrays) -> Arrays:
    """The attention of an encoder-decoder of given weights, at its three places."""
    inputs = {name: torch.tensor(arrays.pop(name)) for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    out = built(AutoModelForSeq2SeqLM, asked, arrays)(**inputs, use_cache=False, output_attentions=True)
    places = {"encoder.attention": "encoder", "decoder.attention": "decoder", "decoder.cross": "cross"}
    return {name: torch.stack(out[f"{their}_attentions"]).detach().numpy() for name, their in places.items()}


def flows(asked: dict[str, Any], arrays: Arrays) -> Arrays:
    """The maximum flow of each pair through maps (L, n, n), by SciPy, by igraph, and of some pairs by networkx."""
    maps = arrays["maps"]
    L, n, _ = maps.shape
    edges = [
        ((layer + 1) * n + i, layer * n + k, float(maps[layer, i, k]))
        for layer, i, k in zip(*np.nonzero(maps), strict=True)
    ]
    starts, ends, capacities = map(np.array, zip(*edges, strict=True))
    units = np.round(capacities * UNITS).astype(np.int32)
    sparse = csr_matrix((units, (starts, ends)), shape=((L + 1) * n,) * 2)
    graph = igraph.Graph((L + 1) * n, list(zip(starts, ends, strict=True)), directed=True)
    other = networkx.DiGraph()
    other.add_nodes_from(range((L + 1) * n))
    other.add_weighted_edges_from(edges, weight="capacity")
    solvers: dict[str, Callable[[int, int], float]] = {
        "scipy": lambda i, j: maximum_flow(sparse, i, j).flow_value / UNITS,
        "igraph": lambda i, j: graph.maxflow_value(i, j, list(capacities)),
        "networkx": lambda i, j: networkx.maximum_flow_value(
            other, i, j, flow_func=networkx.algorithms.flow.preflow_push
        ),
    }
    rows = {"scipy": range(n), "igraph": range(n), "networkx": asked["rows"]}
    return {
        name: np.array([[solver(L * n + i, j) for j in range(n)] for i in rows[name]])
        for name, solver in solvers.items()
    }


if __name__ == "__main__":
    main({"explained": explained, "pairs": pairs, "flows": flows}, *sys.argv[1:])
