"""GPT, a causal Transformer, on text.

    .venv/bin/python -m launch.train --config=configs/gpt.py:quickstart --workdir=runs/quickstart

Each variant below tells its own story: command, hardware, time and score.
"""

from ml_collections import ConfigDict

from configs import base


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


def _small(config: ConfigDict) -> None:
    """What makes a small model learn fast on a CPU: Muon, few wide heads, an activation without a tanh."""
    model, data, optimizer = config.model, config.data, config.optimizer
    model.num_layers, model.width, model.num_heads = 4, 128, 2
    model.mlp, model.qk_norm = "relu2", True
    data.vocab_size, data.length, data.batch_size = 1024, 256, 8
    optimizer.name, optimizer.learning_rate = "muon", 1e-2
    optimizer.schedule, optimizer.warmup_steps, optimizer.final_fraction = "linear", 20, 0.0


def gpt2(config: ConfigDict) -> None:
    """GPT-2 small: 124M parameters, T=1024, bfloat16, for one pod slice such as v5e:4x4. Compiled for it, not yet run.

    .venv/bin/python -m launch.train --config=configs/gpt.py:gpt2 --workdir=runs/gpt2 \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data, train = config.model, config.data, config.train
    model.num_layers, model.width, model.num_heads = 12, 768, 12
    model.norm, model.position, model.use_bias = "layer", "learned", True
    model.remat, model.dtype = "dots", "bfloat16"
    data.vocab_size, data.length, data.batch_size = 50257, 1024, 512
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 6e-4, 2000
    train.steps, train.evaluate_every, train.checkpoint_every = 100_000, 1000, 1000


def llama_1b(config: ConfigDict) -> None:
    """The shape of Llama 3.2 1B: 1,235,814,400 parameters, T=2048, bfloat16, for a slice such as v5e:4x4, 4 sequences a
    device. Compiled for it (tests/train/tpu_compile.py), not yet run.

    .venv/bin/python -m launch.train --config=configs/gpt.py:llama_1b --workdir=runs/llama_1b \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    _llama3(config, factor=32)
    model.num_layers, model.width, model.num_heads, model.num_kv_heads, model.mlp_width = 16, 2048, 32, 8, 8192
    data.length, data.batch_size = 2048, 64


def llama_8b(config: ConfigDict) -> None:
    """The shape of Llama 3.1 8B: 8,030,261,248 parameters, T=8192, bfloat16, for a pod such as v5e:16x16, one sequence
    a device. Compiled for it (tests/train/tpu_compile.py), not yet run.

    .venv/bin/python -m launch.train --config=configs/gpt.py:llama_8b --workdir=runs/llama_8b \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    _llama3(config, factor=8)
    model.num_layers, model.width, model.num_heads, model.num_kv_heads, model.mlp_width = 32, 4096, 32, 8, 14336
    model.tied = False
    data.length, data.batch_size = 8192, 256


def _llama3(config: ConfigDict, factor: int) -> None:
    """What the models of Grattafiori et al. 2024, table 3, have in common."""
    model, train = config.model, config.train
    model.mlp, model.norm, model.position = "swiglu", "rms", f"rope_llama3({factor})"
    model.remat, model.dtype, config.data.vocab_size = "full", "bfloat16", 128256
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 3e-4, 2000
    train.steps, train.evaluate_every, train.checkpoint_every = 100_000, 1000, 1000


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
    "gpt2": gpt2,
    "llama_1b": llama_1b,
    "llama_8b": llama_8b,
    "bench": bench,
}


def get_config(variant: str = "quickstart") -> ConfigDict:
    """Returns the base config with the changes of one variant."""
    config = base.get_config()
    config.family = "gpt"
    VARIANTS[variant](config)
    return config
