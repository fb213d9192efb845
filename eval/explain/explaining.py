"""Maps of inputs by several methods, each as a result: of one answer, or of each token that a model writes."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.asking import Given, names, of_pairs, of_texts
from eval.explain.faithfulness.kept import PASSES
from eval.explain.files.result import Explained, Result, pieces
from eval.explain.methods.integrated import integrated_gradients
from eval.explain.methods.table import METHODS, Asked
from eval.explain.targets import Target
from eval.runs import Run
from model.errors import UserError

BASELINED = ("integrated_gradients", "leave_one_out")  # methods that compare tokens with something


def chosen(run: Run, asked: Sequence[str]) -> list[str]:
    """The methods of these names, or all that make sense for a run's model.

    Raises:
        UserError: there is no such method, or it makes no sense.
    """
    for name in asked:
        if name not in METHODS:
            raise UserError(f"--methods={name} is none of: {', '.join(METHODS)}.")
        if not METHODS[name].serves(run.model):
            why = "has no attention that tells all" if METHODS[name].attention and not run.model.config.sites else ""
            raise UserError(
                f"--methods={name} makes no sense for this model, which {why or 'is of two stacks'}; take one of: "
                f"{', '.join(other for other, method in METHODS.items() if method.serves(run.model))}."
            )
    return list(asked) or [name for name, method in METHODS.items() if method.serves(run.model)]


def explained(
    run: Run,
    asked: Asked,
    given: Given,
    kind: str,
    methods: Sequence[str],
    compared: str = "mean",
    provenance: dict[str, Any] | None = None,
) -> dict[str, list[Result]]:
    """The result of each row that is asked about, by method.

    Raises:
        UserError: numbers that are not finite.
    """
    told, B = _told(run, asked, kind), len(asked.target.places_BP)
    texts, found = texts_of(run, given), {}
    for name in methods:
        start, more = time.perf_counter(), dict[str, np.ndarray]()
        if name == "integrated_gradients":
            whole = integrated_gradients(*asked)
            maps, more = whole.values, {"error": whole.error_B, "passes": whole.passes_B}
        else:
            maps = {site: np.asarray(x) for site, x in METHODS[name].call(asked).items()}
        seconds = (time.perf_counter() - start) / B
        if not all(np.isfinite(x).all() for x in maps.values()):
            raise UserError(
                f"{name} of this model is not finite, as its answer is not: take a run that has not failed."
            )
        found[name] = [
            Result(
                method=name,
                signed=METHODS[name].signed,
                values={site: x[row][: len(texts[site][row])] for site, x in maps.items()},
                pieces={site: texts[site][row] for site in maps},
                target=told[row],
                baseline=compared if name in BASELINED else "",
                error=float(more["error"][row]) if more else None,
                passes=int(more["passes"][row]) if more else _passes(name, [len(rows[row]) for rows in texts.values()]),
                seconds=seconds,
                provenance=provenance or {},
            )
            for row in range(B)
        ]
    return found


def texts_of(run: Run, given: Given) -> dict[str, list[tuple[str, ...]]]:
    """The texts of all tokens, of each row, by the site of their vectors."""
    return {site: [pieces(run.tokenizer, row) for row in rows] for site, rows in given.tokens.items()}


def _passes(name: str, sizes: list[int]) -> int:
    return 1 + sum(sizes) if name == "leave_one_out" else PASSES.get(name, 1)


def _told(run: Run, asked: Asked, kind: str) -> list[Explained]:
    """What is explained of each row, in words and numbers."""
    target = asked.target
    value_B, probability_B = (np.asarray(x, np.float64) for x in _said(*nnx.split(run.model), asked.inputs, target))
    known = names(run) if kind in ("class", "tag") else ["start", "stop"] if kind == "span" else []

    def texts(numbers: list[int]) -> tuple[str, ...]:
        return tuple(known[number] for number in numbers) if known else pieces(run.tokenizer, numbers)

    found = []
    for row in range(len(target.places_BP)):
        places, answers = np.asarray(target.places_BP)[row].tolist(), np.asarray(target.answers_BP)[row].tolist()
        against = [] if target.against_BP is None else np.asarray(target.against_BP)[row].tolist()
        numbers = float(value_B[row]), float(probability_B[row])
        found.append(
            Explained(kind, tuple(places), tuple(answers), texts(answers), *numbers, tuple(against), texts(against))
        )
    return found


@functools.partial(jax.jit, static_argnums=0)
def _said(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], target: Target) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graphdef, params)
    return target.value(model, inputs), target.probability(model, inputs)


def written(run: Run, given: Given, count: int) -> tuple[Given, Target, str]:
    """The likeliest `count` tokens behind the one row that is given, or of its source, each as a row and a target of
    its own, so that the maps are a matrix of what is written x what is read before. It ends at `end`.

    Raises:
        UserError: a model that does not write, or more tokens than it takes.
    """
    if run.experiment.task.HEAD not in ("next_token", "continued", "target"):
        raise UserError(f"--generate={count}: {run.config.task} writes nothing; leave this out.")
    sites = [next(iter(rows)) for rows in given.tokens.values()]
    own, source = sites[0], [side[:-1] for side in sites[1:]]
    first, most = len(own), run.model.config.max_length
    if count < 1 or first + count - 1 > most:
        raise UserError(
            f"--generate={count}: {first} tokens and {count} more, of which the last is not read, are not within the "
            f"{most} that the model takes; give a number from 1 to {most - first + 1}."
        )
    tokens = [*own, *[run.tokenizer.end] * (count - 1)]  # what is not known is not seen, as the model is causal

    def rows(tokens: list[int]) -> Given:
        return of_pairs(run, [(source[0], tokens[1:])]) if source else of_texts(run, [tokens])

    new: list[int] = []
    for place in range(first - 1, first - 1 + count):
        asked = Target(jnp.array([[place]]), jnp.zeros((1, 1), jnp.int32))
        new.append(int(_likeliest(*nnx.split(run.model), rows(tokens).inputs, asked)[0, 0]))
        if new[-1] == run.tokenizer.end:
            break
        if place + 1 < len(tokens):
            tokens[place + 1] = new[-1]
    whole, N = rows([*own, *new[:-1]]), len(new)
    places_N1 = np.arange(first - 1, first - 1 + N)[:, None]
    batch: Any = {name: np.repeat(x, N, axis=0) for name, x in whole.batch.items()}
    seen_NT = np.arange(batch["tokens"].shape[1]) <= places_N1
    shown = {site: side * N for site, side in whole.tokens.items()}
    shown[next(iter(shown))] = [[*own, *new[:-1]][: int(place) + 1] for place in places_N1[:, 0]]
    if source:
        batch["segment_ids"] = batch["segment_ids"] * seen_NT
        inputs = run.experiment.task.inputs(batch)
    else:
        inputs = {"tokens_BT": batch["tokens"], "valid_BT": seen_NT}
    return Given(batch, inputs, shown), Target(jnp.asarray(places_N1), jnp.array(new)[:, None]), "token"


@functools.partial(jax.jit, static_argnums=0)
def _likeliest(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], target: Target) -> jax.Array:
    return target.logits(nnx.merge(graphdef, params), inputs).argmax(axis=-1)
