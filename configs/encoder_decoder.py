"""Encoder-decoders, which read a source and write a target.

The shapes of the original Transformer and of T5: the numbers that a checkpoint of theirs needs. Each has the number of
parameters that its story names, and the logits, loss and gradients of its namesake in `transformers`
(tests/model/test_published_pairs.py). T5 learns spans that were taken out of C4, without the other tasks of its
mixture, which v1.1 has not had; how all are trained here is a start, not what their authors did.
"""

from ml_collections import ConfigDict

from configs import base


def numbers(config: ConfigDict) -> None:
    """Numbers below a million from English words to German ones: 1.0M parameters.

    .venv/bin/python -m launch.train --config=configs/encoder_decoder.py:numbers --workdir=runs/numbers

    Two cores of an AMD EPYC, jax 0.10.2, 2026-11-27: 1.000 of 840 held-out numbers are written to the letter (a copy
    and a dictionary of words: 0, on the same rows), after 91 seconds, start and score included; of those with one digit
    more, 0.
    """
    config.task, config.data.name = "translation", "numbers"
    model, data, optimizer, train = config.model, config.data, config.optimizer, config.train
    model.num_layers, model.width, model.num_heads, model.mlp, model.edits = 2, 128, 4, "relu2", "qk_norm"
    data.tokenizer, data.vocab_size, data.length, data.batch_size = "bpe", 320, 40, 64
    optimizer.name, optimizer.learning_rate = "muon", 1e-2
    optimizer.schedule, optimizer.warmup_steps, optimizer.final_fraction = "linear", 20, 0.0
    train.steps, train.evaluate_every, train.checkpoint_every, train.evaluate_windows = 400, 100, 200, 0
    train.prompt = "forty-two thousand and seven"


def dates(config: ConfigDict) -> None:
    """Days of two centuries from English to German: 1.0M parameters.

    .venv/bin/python -m launch.train --config=configs/encoder_decoder.py:dates --workdir=runs/dates

    Two cores of an AMD EPYC, jax 0.10.2, 2026-11-27: 1.000 of 1,000 held-out days are written to the letter (a copy
    and a dictionary of words: 0, on the same rows), after 51 seconds, start and score included.
    """
    numbers(config)
    config.data.name, config.data.length = "dates", 24
    config.train.steps, config.train.evaluate_every, config.train.prompt = 300, 100, "Friday, November 27, 2026"


def denoising(config: ConfigDict) -> None:
    """Spans that were taken out of the standard library's source, T5's pre-training: 1.1M parameters, 4.9M tokens.

    .venv/bin/python -m launch.train --config=configs/encoder_decoder.py:denoising --workdir=runs/denoising

    Two cores of an AMD EPYC, jax 0.10.2, 2026-11-27: .157 of the tokens taken out are told, each from those before it
    and what was kept (the commonest token beside the left neighbour .133, beside the right one, which only a span's
    last token has, .056, between both .247, on the same rows), after 255 seconds, partly beside other work, start and
    score included; with half of the steps, of twice as many rows, .146.
    """
    numbers(config)
    config.task, config.data.name = "span_corruption", "python_stdlib"
    data, train = config.data, config.train
    data.vocab_size, data.length, data.batch_size = 1024, 128, 16
    train.steps, train.evaluate_every, train.checkpoint_every, train.evaluate_windows = 2400, 600, 600, 512
    train.prompt = "def <extra_id_0>(self):\n        return self._<extra_id_1>\n"


def t5_small(config: ConfigDict) -> None:
    """T5 v1.0 small (Raffel et al. 2020, section 3.1.1 and table 14): 60,506,624 parameters, S=T=512.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5e:4x4: 128 rows, 1.24 of 16.91 GB a device, 0.47 GB sent

    .venv/bin/python -m launch.train --config=configs/encoder_decoder.py:t5_small --workdir=runs/t5_small
    """
    _t5(config)
    _sizes(config, layers=6, width=512, heads=8, mlp_width=2048)


def t5_base(config: ConfigDict) -> None:
    """T5 v1.0 base (Raffel et al. 2020, section 3.1.1): 222,903,552 parameters, S=T=512.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5e:4x4: 128 rows, 3.70 of 16.91 GB a device, 1.77 GB sent

    .venv/bin/python -m launch.train --config=configs/encoder_decoder.py:t5_base --workdir=runs/t5_base
    """
    _t5(config)
    _sizes(config, layers=12, width=768, heads=12, mlp_width=3072)


def t5_large(config: ConfigDict) -> None:
    """T5 v1.0 large (Raffel et al. 2020, table 14): 737,668,096 parameters, S=T=512.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v6e:4x4: 128 rows, 10.11 of 33.55 GB a device, 5.87 GB sent

    .venv/bin/python -m launch.train --config=configs/encoder_decoder.py:t5_large --workdir=runs/t5_large
    """
    _t5(config)
    _sizes(config, layers=24, width=1024, heads=16, mlp_width=4096)


def t5_v1_1_small(config: ConfigDict) -> None:
    """T5 v1.1 small (Raffel et al., the list of released checkpoints): 76,961,152 parameters, S=T=512, a gated MLP, a
    head of its own, and 6 heads of 64.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5e:4x4: 128 rows, 2.59 of 16.91 GB a device, 0.47 GB sent

    .venv/bin/python -m launch.train --config=configs/encoder_decoder.py:t5_v1_1_small --workdir=runs/t5_v1_1_small
    """
    _t5_v1_1(config)
    _sizes(config, layers=8, width=512, heads=6, mlp_width=1024)


def t5_v1_1_base(config: ConfigDict) -> None:
    """T5 v1.1 base: 247,577,856 parameters, S=T=512.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5e:4x4: 128 rows, 7.11 of 16.91 GB a device, 1.77 GB sent

    .venv/bin/python -m launch.train --config=configs/encoder_decoder.py:t5_v1_1_base --workdir=runs/t5_v1_1_base
    """
    _t5_v1_1(config)
    _sizes(config, layers=12, width=768, heads=12, mlp_width=2048)


def t5_v1_1_large(config: ConfigDict) -> None:
    """T5 v1.1 large: 783,150,080 parameters, S=T=512.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v6e:4x4: 128 rows, 19.59 of 33.55 GB a device, 5.97 GB sent

    .venv/bin/python -m launch.train --config=configs/encoder_decoder.py:t5_v1_1_large --workdir=runs/t5_v1_1_large
    """
    _t5_v1_1(config)
    _sizes(config, layers=24, width=1024, heads=16, mlp_width=2816)


def transformer_base(config: ConfigDict) -> None:
    """The original Transformer, base (Vaswani et al. 2017, table 3): 63,045,632 parameters with 37,000 tokens and
    without biases in attention (the paper counts 65M), post-norm.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5e:4x4: 128 rows, 1.42 of 16.91 GB a device, 0.48 GB sent

    .venv/bin/python -m launch.train --config=configs/encoder_decoder.py:transformer_base --workdir=runs/base
    """
    _transformer(config)
    _sizes(config, layers=6, width=512, heads=8, mlp_width=2048)


def transformer_big(config: ConfigDict) -> None:
    """The original Transformer, big (Vaswani et al. 2017, table 3): 214,171,648 parameters with 37,000 tokens (the
    paper counts 213M).

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5e:4x4: 128 rows, 2.65 of 16.91 GB a device, 1.66 GB sent

    .venv/bin/python -m launch.train --config=configs/encoder_decoder.py:transformer_big --workdir=runs/big
    """
    _transformer(config)
    _sizes(config, layers=6, width=1024, heads=16, mlp_width=4096)
    config.model.dropout = 0.3


def _sizes(config: ConfigDict, layers: int, width: int, heads: int, mlp_width: int) -> None:
    """As many layers on both sides, and heads of 64."""
    model = config.model
    model.num_layers, model.width, model.num_heads, model.mlp_width = layers, width, heads, mlp_width
    model.head_width = 64


def _t5(config: ConfigDict) -> None:
    """T5 v1.0: distances alone say where a token is, and products are not scaled by the width of a head."""
    model, data = config.model, config.data
    model.encoder_position, model.position = "none", "none"
    model.encoder_bias, model.bias = "t5(32, 128)", "t5_causal(32, 128)"
    model.encoder_scale, model.scale, model.cross_scale = 1.0, 1.0, 1.0
    model.mlp, model.logits_scale, model.dropout = "relu", 0.0, 0.1
    data.vocab_size, data.length, data.batch_size = 32099, 512, 128  # and a start and 28 sentinels: 32128 tokens
    data.name, config.task = "c4", "span_corruption"
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.schedule = "adafactor", 1e-2, "inverse_sqrt"
    config.train.z_loss = 1e-4
    _run(config, warmup_steps=10_000)


def _t5_v1_1(config: ConfigDict) -> None:
    """T5 v1.1: a gated MLP, a head of its own whose logits are not scaled, and pre-training without dropout."""
    _t5(config)
    config.model.mlp, config.model.tied, config.model.logits_scale, config.model.dropout = "geglu", False, 1.0, 0.0


def _transformer(config: ConfigDict) -> None:
    """The original: sinusoids, norms behind the sums, one matrix for both embeddings and the head."""
    model, data = config.model, config.data
    model.encoder_position, model.position, model.embedding = "sinusoidal", "sinusoidal", "scaled"
    model.norm, model.norm_place, model.mlp, model.use_bias = "layer", "post", "relu", "mlp & norm"
    model.dropout = 0.1
    data.vocab_size, data.length, data.batch_size = 36999, 256, 128  # and the start: 37000 tokens
    optimizer = config.optimizer
    optimizer.name, optimizer.schedule, optimizer.learning_rate = "adamw", "inverse_sqrt", 7e-4
    optimizer.beta2, optimizer.epsilon, optimizer.weight_decay, optimizer.clip_norm = 0.98, 1e-9, 0.0, 0.0
    config.task, data.name, data.feature = "translation", "wmt14_translate/de-en", "de,en"
    config.train.label_smoothing = 0.1
    _run(config, warmup_steps=4000)


def _run(config: ConfigDict, warmup_steps: int) -> None:
    train = config.train
    config.optimizer.warmup_steps = warmup_steps
    train.steps, train.evaluate_every, train.checkpoint_every = 100_000, 1000, 1000


VARIANTS = {
    "numbers": numbers,
    "dates": dates,
    "denoising": denoising,
    "t5_small": t5_small,
    "t5_base": t5_base,
    "t5_large": t5_large,
    "t5_v1_1_small": t5_v1_1_small,
    "t5_v1_1_base": t5_v1_1_base,
    "t5_v1_1_large": t5_v1_1_large,
    "transformer_base": transformer_base,
    "transformer_big": transformer_big,
}


def get_config(variant: str = "numbers") -> ConfigDict:
    """Returns the base config with the changes of one variant."""
    config = base.get_config()
    config.family = "encoder_decoder"
    VARIANTS[variant](config)
    return config
