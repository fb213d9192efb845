"""Recurrent networks: a language model, and an encoder-decoder with additive attention.

    .venv/bin/python -m launch.train --config=configs/recurrent.py:lm --workdir=runs/rnn

Each variant below tells its own story: command, hardware, time and score.
"""

from ml_collections import ConfigDict

from configs import base


def lm(config: ConfigDict) -> None:
    """An LSTM on the source of Python's standard library: 1.3M parameters, 2.5M tokens.

    .venv/bin/python -m launch.train --config=configs/recurrent.py:lm --workdir=runs/rnn

    Two cores of an AMD EPYC, jax 0.10.2, 2026-11-27: 1.685 bits per byte of the validation text (contexts of four bytes
    2.032, gzip 1.999 and xz 1.664 on the same rows), after 160 seconds, start and score included.

    Streams of 8 windows, in which the state goes on, do worse on as many tokens: 1.715 (--config.task=streamed_text;
    one seed each). It is their order that hurts, in which 8 steps one after the other read the same 32 stretches of
    text: measured window by window that model has 1.732, and 1.733 where the state begins anew in each window. What is
    carried helps where it is measured: in streams of 8 windows the first model has 1.668.
    """
    config.family, config.task = "recurrent", "language_model"
    model, data, optimizer, train = config.model, config.data, config.optimizer, config.train
    model.num_layers, model.width = 2, 256
    data.vocab_size, data.length, data.batch_size = 1024, 128, 32
    optimizer.name, optimizer.learning_rate = "muon", 1e-2
    optimizer.schedule, optimizer.warmup_steps, optimizer.final_fraction = "linear", 20, 0.0
    train.steps, train.evaluate_every, train.checkpoint_every = 600, 200, 200


def numbers(config: ConfigDict) -> None:
    """Numbers below a million from English words to German ones, by an LSTM that looks at what a bidirectional one has
    read: 0.4M parameters.

    .venv/bin/python -m launch.train --config=configs/recurrent.py:numbers --workdir=runs/rnn_numbers

    Two cores of an AMD EPYC, jax 0.10.2, 2026-11-27: 1.000 of 840 held-out numbers are written to the letter (a copy
    and a dictionary of words: 0, on the same rows), after 58 seconds, start and score included; of those with one digit
    more, 0.
    """
    config.family, config.task, config.data.name = "recurrent_encoder_decoder", "translation", "numbers"
    model, data, optimizer, train = config.model, config.data, config.optimizer, config.train
    model.num_layers, model.width = 1, 128
    data.tokenizer, data.vocab_size, data.length, data.batch_size = "bpe", 320, 40, 64
    optimizer.name, optimizer.learning_rate = "adamw", 3e-3
    optimizer.schedule, optimizer.warmup_steps, optimizer.final_fraction = "linear", 20, 0.0
    train.steps, train.evaluate_every, train.checkpoint_every, train.evaluate_windows = 600, 200, 200, 0
    train.prompt = "forty-two thousand and seven"


def parity(config: ConfigDict) -> None:
    """Whether strings of bits, longer than those that were learned, have an even or an odd number of ones: what a state
    tells, and attention does not. 32,640 parameters.

    .venv/bin/python -m launch.train --config=configs/recurrent.py:parity --workdir=runs/parity

    AMD EPYC, jax 0.10.2, 2026-11-26: .996 of 500 strings of 11 to 20 bits after less than a minute. An encoder-decoder
    of attention with as many parameters tells .714 (--config.family=encoder_decoder --config.model.mlp_width=93
    --config.optimizer.learning_rate=3e-3); the plan configs/ablations/recurrence.py compares the two.
    """
    config.family, config.task, config.data.name = "recurrent_encoder_decoder", "translation", "parity"
    model, data, optimizer, train = config.model, config.data, config.optimizer, config.train
    model.num_layers, model.width = 1, 32
    data.tokenizer, data.length, data.batch_size = "bytes", 24, 64
    optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps, optimizer.final_fraction = (
        1e-2,
        "linear",
        20,
        0.0,
    )
    train.steps, train.evaluate_every, train.checkpoint_every, train.evaluate_windows = 600, 200, 300, 0
    train.prompt = "01101001"


VARIANTS = {"lm": lm, "numbers": numbers, "parity": parity}


def get_config(variant: str = "lm") -> ConfigDict:
    """Returns the base config with the changes of one variant."""
    config = base.get_config()
    VARIANTS[variant](config)
    return config
