"""Says which attention core is exact for what: `.venv/bin/python -m launch.attention --table`.

For one config on this machine: `.venv/bin/python -m launch.attention --config=configs/gpt.py:gpt2`. How fast `auto` is
here: `.venv/bin/python -m launch.attention --race=16x6x256x64`.

An exact cell is one whose output and gradients the tests compare with float64; what they cannot run here says so."""

import argparse
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from launch import cli
from launch.bench import ROUNDS, race
from launch.configs import load
from launch.train import check
from model.attention import CORES, Core, Refusal, Request, Scores, attend, causal
from model.attention.cores.conditions import examples
from model.cycles import Cycle
from model.errors import UserError, check_range
from train.attention import Chosen, cache_bytes
from train.flops import attention_flops

EVIDENCE = {"tested": "exact", "interpreted": "exact, interpreted", "untested": "untested"}


def table() -> str:
    """The cores beside all conditions, as Markdown; the same on every machine: each core is asked for its home."""
    notes: list[str] = []
    rows: list[tuple[list[str], list[str]]] = []
    for name, example in examples().items():
        cells = [_cell(core.refusal(example.request(core)), core, notes) for core in CORES.values()]
        if rows and rows[-1][1] == cells:
            rows[-1][0].append(name.replace("|", "\\|"))
        else:
            rows.append(([name.replace("|", "\\|")], cells))
    lines = [["", *CORES], ["---"] * (len(CORES) + 1), ["runs on", *map(_home, CORES.values())]]
    lines += [["scores up to", *(_limit(core.largest_score) for core in CORES.values())]]
    lines += [["; ".join(names), *cells] for names, cells in rows]
    reasons = [["no", "because; instead"], ["---"] * 2, *([f"({n})", note] for n, note in enumerate(notes, 1))]
    return "\n\n".join("\n".join(f"| {' | '.join(line)} |" for line in part) for part in (lines, reasons))


def explain(request: Request) -> Iterator[str]:
    """One line for each core: exact, or why not and what to change."""
    for name, core in CORES.items():
        no = core.refusal(request)
        yield f"{name:<10} {f'refused: {no.reason}; {no.fix}' if no else _evidence(core)}"


def race_attention(sizes: tuple[int, ...], rounds: int) -> list[float]:
    """Time of causal attention, forward and backward in float32, by `auto` as a part of that of jax's XLA path.

    Sizes are (B, H, T, K). One ratio a round, in which both take turns, on random inputs; their results are compared
    first.
    """
    B, H, T, K = sizes
    drawn = [jax.random.normal(key, (B, T, H, K)) for key in jax.random.split(jax.random.key(0), 4)]
    scale = K**-0.5

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend("auto", q, k, v, Scores(causal(), scale))

    def peer(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, implementation="xla")

    def runner(call: Callable[..., jax.Array]) -> Callable[[], Any]:
        def both(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array) -> tuple[jax.Array, ...]:
            o, pull = jax.vjp(call, q, k, v)
            return o, *pull(do)

        compiled = jax.jit(both)
        return lambda: jax.block_until_ready(compiled(*drawn))

    runners = {"ours": runner(ours), "peer": runner(peer)}
    for one, other in zip(runners["ours"](), runners["peer"](), strict=True):
        if not np.allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max()):
            raise RuntimeError("the two do not compute the same")
    seconds = race(runners, rounds)
    return list(np.array(seconds["ours"]) / np.array(seconds["peer"]))


def _evidence(core: Core) -> str:
    return EVIDENCE[core.evidence] if core.is_softmax else "another function"


def _cell(no: Refusal | None, core: Core, notes: list[str]) -> str:
    if no is None:
        return _evidence(core)
    note = f"{no.reason}; {no.fix}."
    if note not in notes:
        notes.append(note)
    return f"no ({notes.index(note) + 1})"


def _home(core: Core) -> str:
    return "several devices" if core.context > 1 else "all" if core.platform == "cpu" else core.platform.upper()


def _limit(score: float | None) -> str:
    return "not measured" if score is None else "any" if score == math.inf else f"{score:g}"


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("attention", __doc__ or "", config=False, workdir=False)
    made.add_argument("--table", action="store_true", help="every core under every condition")
    made.add_argument("--config", default="", help=cli.CONFIG_HELP)
    made.add_argument("--race", default="", metavar="BxHxTxK", help="time `auto` beside jax.nn.dot_product_attention")
    made.add_argument("--rounds", type=int, default=9, help="how often each is timed for --race")
    return made


def main(argv: Sequence[str]) -> None:
    """Prints the table, or what each core says of a config's training on this machine."""
    flags, overrides = cli.parse(parser(), argv)
    _check_flags(flags, overrides)
    if flags.table:
        print(table())
        return
    if flags.race:
        ratios = race_attention(_sizes(flags.race), flags.rounds)
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        print(f"auto / jax.nn.dot_product_attention (XLA) = {middle:.3f} (quartiles {low:.3f} to {high:.3f})")
        return
    experiment = check(load(flags.config, **overrides))
    config = experiment.model_config
    kept, computed = cache_bytes(config), attention_flops(config)
    for name, chosen in experiment.attention.items():
        site = config.sites[name]
        if len(config.sites) > 1:
            print(f"attention of the {name}:")
        _explain(chosen, list(zip(site.places, kept[name], computed[name], strict=True)))
        cores = chosen.map(lambda place: place.choice.name)
        print(f"{experiment.config.model[f'{site.keys}core']} takes {cores}")
    if not experiment.attention:
        raise UserError(f"a model of --config.family={experiment.config.family} attends by no core.")


def _explain(chosen: Cycle[Chosen], of_place: list[tuple[int, int, float]]) -> None:
    """Prints what each core says of the layers at each place of the unit, equal ones once."""
    for number, place in enumerate(chosen):
        if of_place[number] in of_place[:number]:
            continue
        if len(chosen) > 1:
            same = [str(n + 1) for n, other in enumerate(of_place) if other == of_place[number]]
            _, kept, computed = of_place[number]
            costs = f"keeps {kept:,} bytes of a row while it decodes, {computed:,.0f} FLOPs a token"
            print(f"layer{'s' * (len(same) > 1)} {', '.join(same)} of each {len(chosen)} (each {costs}):")
        print("\n".join(explain(place.request)))


def _check_flags(flags: argparse.Namespace, overrides: dict[str, str]) -> None:
    given = [flags.table, bool(flags.race), bool(flags.config)]
    if sum(given) != 1 or (overrides and not flags.config):
        raise UserError("give one of --table, --race and --config, such as --config=configs/gpt.py:quickstart.")
    check_range("rounds", flags.rounds, ROUNDS)


def _sizes(text: str) -> tuple[int, ...]:
    if not re.fullmatch("[1-9][0-9]{0,8}(x[1-9][0-9]{0,8}){3}", text):
        raise UserError(f"--race={text} is not B x H x T x K, such as --race=16x6x256x64.")
    return tuple(int(number) for number in text.split("x"))


if __name__ == "__main__":
    cli.run(main)
