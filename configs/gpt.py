"""GPT, a causal Transformer, on text.

    .venv/bin/python -m launch.train --config=configs/gpt.py:quickstart --workdir=runs/quickstart

Each variant below tells its own story: command, hardware, time and score.
"""

from ml_collections import ConfigDict

from configs import base, published


def quickstart(config: ConfigDict) -> None:
    """A first run, on the source of Python's standard library: 0.9M parameters, 1.2M tokens.

    make quickstart

    Two cores of an AMD EPYC, jax 0.10.2: 2.5 minutes of training, 1.780 bits per byte (trigrams 2.655, contexts of
    three bytes 2.171, gzip -9 1.999, xz -9 1.664).
    """
    _small(config)
    config.train.steps, config.train.evaluate_every, config.train.checkpoint_every = 600, 300, 100


def cpu(config: ConfigDict) -> None:
    """The best of half an hour on two cores: 2.2M parameters, 4.9M tokens.

    .venv/bin/python -m launch.train --config=configs/gpt.py:cpu --workdir=runs/cpu

    Two cores of an AMD EPYC, jax 0.10.2: 1.251 bits per byte (contexts of four bytes 2.032, gzip -9 1.999, xz -9 1.664)
    after 16 minutes at the 5.0k tokens/s of a quiet machine; the run that gave the score shared its cores.
    """
    _small(config)
    config.model.width, config.model.num_heads, config.model.unroll = 192, 3, 4
    config.data.vocab_size, config.data.batch_size = 2048, 16
    config.train.steps, config.train.evaluate_every, config.train.checkpoint_every = 1200, 300, 100


def ablation(config: ConfigDict) -> None:
    """What the plans of configs/ablations/ change: small enough that dozens of runs fit in minutes; L2 D48 H4 T64 B64.

    .venv/bin/python -m launch.train --config=configs/gpt.py:ablation --workdir=runs/ablation

    Bytes, 1.6M of them. Two cores of an AMD EPYC, jax 0.10.2: 2.406 bits per byte, on 512 windows, after about 20
    seconds on a quiet machine (2.409 at three times the learning rate, 3.046 at a tenth).
    """
    model, data, optimizer, train = config.model, config.data, config.optimizer, config.train
    model.num_layers, model.width, model.num_heads = 2, 48, 4
    data.tokenizer, data.length, data.batch_size = "bytes", 64, 64
    optimizer.learning_rate, optimizer.schedule = 1e-2, "linear"
    optimizer.warmup_steps, optimizer.final_fraction = 20, 0.0
    train.steps, train.evaluate_every, train.checkpoint_every, train.evaluate_windows = 400, 100, 200, 512


def _small(config: ConfigDict) -> None:
    """What makes a small model learn fast on a CPU: Muon, few wide heads, an activation without a tanh."""
    model, data, optimizer = config.model, config.data, config.optimizer
    model.num_layers, model.width, model.num_heads = 4, 128, 2
    model.mlp, model.edits = "relu2", "qk_norm"
    data.vocab_size, data.length, data.batch_size = 1024, 256, 8
    optimizer.name, optimizer.learning_rate = "muon", 1e-2
    optimizer.schedule, optimizer.warmup_steps, optimizer.final_fraction = "linear", 20, 0.0


def bench(config: ConfigDict) -> None:
    """What `launch.bench` times beside a bare function, and the README beside nanodo: L6 D384 H6 T256 B16 V256,
    float32.

    .venv/bin/python -m launch.bench --config=configs/gpt.py:bench
    """
    model, data = config.model, config.data
    model.num_layers, model.width, model.num_heads, model.unroll = 6, 384, 6, 6
    model.norm, model.position = "layer", "learned"
    data.tokenizer, data.length, data.batch_size = "bytes", 256, 16


VARIANTS = {
    "quickstart": quickstart,
    "cpu": cpu,
    "bench": bench,
    "ablation": ablation,
    "gpt2": published.gpt2,
    "gptj_6b": published.gptj_6b,
    "gptneox_20b": published.gptneox_20b,
    "llama_1b": published.llama_1b,
    "llama_8b": published.llama_8b,
    "mistral_7b": published.mistral_7b,
    "qwen2_7b": published.qwen2_7b,
    "qwen3_8b": published.qwen3_8b,
    "gemma2_9b": published.gemma2_9b,
    "gemma3_1b": published.gemma3_1b,
}


def get_config(variant: str = "quickstart") -> ConfigDict:
    """Returns the base config with the changes of one variant."""
    config = base.get_config()
    config.family = "gpt"
    VARIANTS[variant](config)
    return config
