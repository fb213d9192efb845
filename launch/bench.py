"""Measures the training step against the same model as a bare function:
`.venv/bin/python -m launch.bench --config=configs/gpt.py:bench`.

The bare function is GPT written out with jax.numpy over a plain list of layers, with the same numbers, loss and
optimizer. Ours with the reference core runs beside both. All take turns in one process on the same batch of random
tokens, so what counts is the ratio of each pair, not the seconds."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from launch import cli
from launch.configs import load
from model.attention.cores.table import anywhere
from model.errors import Range, UserError, check_range
from train.devices.machine import matrix_rate
from train.experiment import make_experiment, make_model_config
from train.flops import flops_per_token
from train.schedules import make_schedule
from train.sharding import placed
from train.state import Params

BARE = {"norm": "layer", "norm_place": "pre", "position": "learned", "mlp": "gelu", "mask": "causal", "tied": True}
PLAIN = {
    "use_bias": False,
    "bias": "none",
    "soft_cap": 0.0,
    "logits_soft_cap": 0.0,
    "embedding": "plain",
    "sinks": False,
    "scale": 0.0,
    "edits": "none",
    "dropout": 0.0,
    "remat": "none",
    "num_kv_heads": 0,
    "dtype": "float32",
}
ROUNDS = Range(3, 10_000)  # in which contenders take turns: quartiles need three


def bare_loss(params: Params, batch: dict[str, jax.Array], num_heads: int) -> jax.Array:
    """The mean negative log-likelihood of the model that BARE and PLAIN describe; params: see `unstack`."""
    tokens_BT = batch["tokens"]
    x_BTD = params["embed"][tokens_BT] + params["positions"][batch["positions"]]
    allowed_BTS = jnp.tril(jnp.ones((tokens_BT.shape[1],) * 2, bool))[None]
    allowed_BTS &= batch["segment_ids"][:, :, None] == batch["segment_ids"][:, None, :]
    for layer in params["layers"]:
        y_BTD = _norm(x_BTD, layer["attention_norm"])
        q, k, v = (jnp.einsum("BTD,DHK->BHTK", y_BTD, layer[name]) for name in ("query", "key", "value"))
        scores_BHTS = jnp.einsum("BHTK,BHSK->BHTS", q / np.sqrt(q.shape[-1]), k)
        weights_BHTS = jax.nn.softmax(jnp.where(allowed_BTS[:, None], scores_BHTS, -1e30), axis=-1)
        o_BHTK = jnp.einsum("BHTS,BHSK->BHTK", weights_BHTS, v)
        x_BTD = x_BTD + jnp.einsum("BHTK,HKD->BTD", o_BHTK, layer["output"])
        x_BTD = x_BTD + jax.nn.gelu(_norm(x_BTD, layer["mlp_norm"]) @ layer["up"]) @ layer["down"]
    logits_BTV = _norm(x_BTD, params["norm"]) @ params["embed"].T
    nll_BT = optax.losses.softmax_cross_entropy_with_integer_labels(logits_BTV, batch["targets"])
    return jnp.sum(nll_BT * batch["weights"]) / jnp.sum(batch["weights"])


def _norm(x_BTD: jax.Array, scale_D: jax.Array) -> jax.Array:
    centred_BTD = x_BTD - jnp.mean(x_BTD, axis=-1, keepdims=True)
    return centred_BTD * jax.lax.rsqrt(jnp.mean(centred_BTD**2, axis=-1, keepdims=True) + 1e-6) * scale_D[None, None]


def unstack(params: Params) -> Params:
    """The parameters of our GPT as the bare function takes them: a list of layers, each a flat dict."""
    blocks = params["stack"]["blocks"]
    kernels = {name: part["kernel"] for name, part in {**blocks["attention"], **blocks["mlp"]}.items()}
    norms = {name: blocks[name]["scale"] for name in ("attention_norm", "mlp_norm")}
    stacked = {**kernels, **norms}
    layers = [{name: x[i] for name, x in stacked.items()} for i in range(len(norms["mlp_norm"]))]
    return {
        "embed": params["embed"]["embedding"],
        "positions": params["position"]["table"],
        "norm": params["norm"]["scale"],
        "layers": layers,
    }


def bare_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping and AdamW over the bare parameters, decay on the matrices of the layers only."""
    optimizer = config.optimizer

    def mask(params: Params) -> Params:
        none = jax.tree.map(lambda x: False, params)
        return none | {"layers": jax.tree.map(lambda x: x.ndim > 1, params["layers"])}

    adamw = optax.adamw(
        schedule, optimizer.beta1, optimizer.beta2, optimizer.epsilon, weight_decay=optimizer.weight_decay, mask=mask
    )
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), adamw)


@dataclasses.dataclass
class Contender:
    """A jitted step with its state; calling it makes one update and returns the loss."""

    step: Callable[[Any, Any], tuple[Any, jax.Array]]
    state: Any
    batch: Any

    def __call__(self) -> float:
        """One update, finished."""
        self.state, loss = self.step(self.state, self.batch)
        return float(loss)


def contenders(config: ConfigDict, vocab_size: int) -> dict[str, Contender]:
    """`ours`, `dense` (ours with the reference core) and `bare`, with equal parameters, batch and optimizer.

    Raises:
        UserError: the config is not of the model that the bare function writes out.
    """
    if config.family != "gpt":
        raise UserError("launch.bench measures --config.family=gpt; take configs/gpt.py:bench.")
    for key, value in (BARE | PLAIN).items():
        if config.model[key] != value:
            raise UserError(
                f"--config.model.{key}={config.model[key]!r}: the bare function is written for {value!r} only."
            )
    if config.optimizer.name != "adamw" or config.train.seeds != 1 or config.train.accumulate != 1:
        raise UserError(
            "--config: the bare function takes AdamW, one seed and no accumulation; use configs/gpt.py:bench."
        )
    if config.optimizer.decayed != "kernel":
        raise UserError(
            f"--config.optimizer.decayed={config.optimizer.decayed!r}: the bare function is written for 'kernel' only."
        )
    if anywhere(config.model.core) != "auto":
        raise UserError(
            f"--config.model.core={config.model.core!r}: the bare function is written for softmax attention only."
        )
    reference = ConfigDict(config.to_dict())
    reference.model.core = "dense"
    ours, dense = (_experiment_step(one, vocab_size) for one in (config, reference))
    params, optimizer = (
        unstack(ours.state.params),
        bare_optimizer(config, make_schedule(config.optimizer, config.train.steps)),
    )
    params = jax.tree.map(jnp.copy, params)  # all states are donated, so they must not share arrays

    def bare(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        params, opt_state = state
        loss, grads = jax.value_and_grad(bare_loss)(params, batch, config.model.num_heads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    bare_state = (params, optimizer.init(params))
    return {
        "ours": ours,
        "dense": dense,
        "bare": Contender(jax.jit(bare, donate_argnums=0), bare_state, ours.batch),
    }


def _experiment_step(config: ConfigDict, vocab_size: int) -> Contender:
    experiment = make_experiment(config, vocab_size, jax.local_devices()[:1])
    with placed(experiment.mesh, experiment.rules):
        state, batch = experiment.make_state(), experiment.place(random_batch(config, vocab_size))

    def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        with placed(experiment.mesh, experiment.rules):
            state, metrics = experiment.step(state, batch)
        return state, metrics["nll"]

    return Contender(step, state, batch)


def random_batch(config: ConfigDict, vocab_size: int) -> dict[str, np.ndarray]:
    """A batch of random tokens: the chips and the caches treat zeros better than text."""
    rng, shape = np.random.default_rng(0), (config.data.batch_size, config.data.length)
    tokens = rng.integers(0, vocab_size, (shape[0], shape[1] + 1), dtype=np.int32)
    ones = np.ones(shape, np.int32)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    targets = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": ones.astype(np.float32)}
    return targets | {"segment_ids": ones, "positions": positions}


def race(runners: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each runner in each round; they take turns, so that a slow moment of the machine slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("bench", __doc__ or "", workdir=False)
    made.add_argument("--rounds", type=int, default=15, help="how often each step is timed, after three that are not")
    return made


def main(argv: Sequence[str]) -> None:
    """Prints the step's time beside the bare function's, as the median of the ratios of each round."""
    flags, overrides = cli.parse(parser(), argv)
    check_range("rounds", flags.rounds, ROUNDS)
    config = load(flags.config, **overrides)
    vocab_size = 256 if config.data.tokenizer == "bytes" else config.data.vocab_size
    both = contenders(config, vocab_size)
    # The first update may have a rate of 0, and then shows nothing of the optimizer.
    losses = {name: [run() for _ in range(3)] for name, run in both.items()}
    if not all(np.allclose(losses["ours"], other, rtol=1e-5) for other in losses.values()):
        raise RuntimeError(f"the steps do not learn the same: {losses}")
    seconds = race(dict(both), flags.rounds)
    for name, times in seconds.items():
        low, middle, high = np.percentile(times, [25, 50, 75])
        print(f"{name:<5} {1e3 * middle:8.1f} ms a step (quartiles {1e3 * low:.1f} to {1e3 * high:.1f})")
    for name in ("bare", "dense"):
        low, middle, high = np.percentile(np.array(seconds["ours"]) / np.array(seconds[name]), [25, 50, 75])
        print(f"ours / {name:<5} = {middle:.3f} (quartiles {low:.3f} to {high:.3f}, {flags.rounds} rounds in turn)")
    flops = flops_per_token(make_model_config(config, vocab_size)) * config.data.batch_size * config.data.length
    rate = flops / np.median(seconds["ours"])
    share = rate / matrix_rate(config.model.dtype)
    print(f"{rate / 1e9:.1f} GFLOP/s = {100 * share:.0f} % of the matrix rate (model FLOPs, attention causally)")


if __name__ == "__main__":
    cli.run(main)
