"""BERT, a bidirectional encoder.

    .venv/bin/python -m launch.train --config=configs/bert.py:mlm --workdir=runs/mlm

Each variant below tells its own story: command, hardware, time and score.
"""

from ml_collections import ConfigDict

from configs import base


def mlm(config: ConfigDict) -> None:
    """Masked tokens of the standard library's source: 0.9M parameters, 2.0M tokens.

    .venv/bin/python -m launch.train --config=configs/bert.py:mlm --workdir=runs/mlm
    """
    config.family, config.task = "bert", "masked_lm"
    model, data, optimizer = config.model, config.data, config.optimizer
    model.num_layers, model.width, model.num_heads = 4, 128, 2
    model.mlp, model.norm, model.norm_place, model.embedding = "relu2", "rms", "pre", "plain"
    model.position, model.use_bias, model.edits = "rope", "head", "qk_norm"
    data.vocab_size, data.length, data.batch_size = 1024, 128, 16
    optimizer.name, optimizer.learning_rate = "muon", 1e-2
    optimizer.schedule, optimizer.warmup_steps, optimizer.final_fraction = "linear", 20, 0.0
    config.train.steps, config.train.evaluate_every, config.train.checkpoint_every = 1000, 250, 250


def packages(config: ConfigDict) -> None:
    """Which package of the standard library is a snippet from? 0.9M parameters.

    .venv/bin/python -m launch.train --config=configs/bert.py:packages --workdir=runs/packages
    """
    mlm(config)
    config.task, config.data.name = "classification", "packages"
    model, data, optimizer, train = config.model, config.data, config.optimizer, config.train
    model.num_layers, model.dropout, model.use_bias = 2, 0.1, "head"
    data.vocab_size, data.batch_size = 2048, 32
    optimizer.learning_rate, optimizer.weight_decay = 1e-2, 0.1
    train.steps, train.evaluate_every, train.checkpoint_every = 1500, 250, 500


VARIANTS = {"mlm": mlm, "packages": packages}


def get_config(variant: str = "mlm") -> ConfigDict:
    """Returns the base config with a variant's changes."""
    config = base.get_config()
    VARIANTS[variant](config)
    return config
