"""BERT, a bidirectional encoder.

    .venv/bin/python -m launch.train --config=configs/bert.py:mlm --workdir=runs/mlm

Each variant below tells its own story: command, hardware, time and score.
"""

from ml_collections import ConfigDict

from configs import base


def mlm(config: ConfigDict) -> None:
    """Masked tokens of the standard library's source: 0.9M parameters, 2.0M tokens.

    .venv/bin/python -m launch.train --config=configs/bert.py:mlm --workdir=runs/mlm

    Two cores of an AMD EPYC, jax 0.10.2, 2026-11-27: .308 of the masked tokens are told after 2 minutes, start and
    score included (the commonest token beside the left neighbour .119, beside the right one .113, between both .384,
    on the same rows).
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


def mlm_long(config: ConfigDict) -> None:
    """As `mlm`, four times as long: 8.2M tokens.

    .venv/bin/python -m launch.train --config=configs/bert.py:mlm_long --workdir=runs/mlm_long

    Two cores of an AMD EPYC, jax 0.10.2, 2026-11-27: .591 of the masked tokens are told, after 13 minutes beside other
    work (between both neighbours .384, on the same rows).
    """
    mlm(config)
    config.train.steps, config.train.evaluate_every, config.train.checkpoint_every = 4000, 1000, 500


def packages(config: ConfigDict) -> None:
    """Which package of the standard library is a snippet from? 0.5M parameters, four epochs.

    .venv/bin/python -m launch.train --config=configs/bert.py:packages --workdir=runs/packages

    Two cores of an AMD EPYC, jax 0.10.2, 2026-11-27: .791 of the classes told (.791, .790 and .787 by seeds 0 to 2),
    after 51 seconds, start and score included (majority .240 and naive Bayes on words .808, on the same rows). That is
    below its bar, naive Bayes. Without hidden words it knows each training file before the first epoch ends, and stays
    at .756; at 5e-3, two epochs and no smoothing .7 of them hidden make .777, and four times as many steps .776.
    """
    mlm(config)
    config.task, config.data.name, config.objective.hide = "classification", "packages", 0.8
    model, data, optimizer, train = config.model, config.data, config.optimizer, config.train
    model.num_layers, model.width, model.num_heads, model.head_width, model.mlp_width = 1, 64, 1, 16, 16
    model.pool, model.dropout = "mean", 0.3
    data.vocab_size, data.batch_size = 8192, 64
    optimizer.learning_rate, optimizer.beta2 = 1e-2, 0.99
    train.label_smoothing, train.steps, train.evaluate_every, train.checkpoint_every = 0.1, 1528, 382, 382


def roles(config: ConfigDict) -> None:
    """Which role has a name of source code: function, class, parameter, attribute, module, local or called? 1.6M
    parameters, 3.1M tokens.

    .venv/bin/python -m launch.train --config=configs/bert.py:roles --workdir=runs/roles

    Two cores of an AMD EPYC, jax 0.10.2, 2026-11-27: entity F1 .954, .983 of the tags right, after 142 seconds, start
    and score included (the commonest tag of a word: .650 and .860, on the same rows). Words beyond the length count as
    errors: .2 % of them.
    """
    mlm(config)
    config.task, config.data.name = "tagging", "roles"
    config.model.num_layers = 3
    config.data.vocab_size, config.data.length = 8192, 160  # nearly every word in one piece or two, and 64 of them
    config.train.steps, config.train.evaluate_every, config.train.checkpoint_every = 1200, 400, 400


def spans(config: ConfigDict) -> None:
    """What is the default of an argument? An answer within the header of a function of the standard library: 1.1M
    parameters, 22,400 questions with other names and places of arguments each time.

    .venv/bin/python -m launch.train --config=configs/bert.py:spans --workdir=runs/spans

    Two cores of an AMD EPYC, jax 0.10.2, 2026-11-27: .977 of 395 questions are answered letter by letter, .919 by seed
    1 (the first default .511, the header's commonest one .575, the commonest answer .557, on the same rows), after 162
    seconds beside other work, start and score included. 500 steps made .886, and on another machine .937.
    """
    mlm(config)
    config.task, config.data.name = "span_qa", "questions"
    model, data, train = config.model, config.data, config.train
    model.num_heads, model.types = 4, 2
    data.vocab_size, data.batch_size, data.length = 2048, 32, 112
    train.steps, train.evaluate_every, train.checkpoint_every = 700, 140, 350


def rationale(config: ConfigDict) -> None:
    """Of which group does a text hold all three letters, each at any place, or of none? What an explanation has to
    find is known there: 34,212 parameters, 0.2M tokens.

    .venv/bin/python -m launch.train --config=configs/bert.py:rationale --workdir=runs/rationale

    Two cores of an AMD EPYC that others used too, jax 0.10.2, 2026-11-27: 1.000 of 800 texts are told (majority and
    naive Bayes .250, on the same rows) after 24 seconds of one core, compilation included; of 8 seeds together .9998.
    Of the three letters integrated gradients name .94 (by chance .15), as configs/ablations/rationale.py has it of all
    methods. On these 64 texts the rule of eval/explain says "faithful here" of weights, rollout, gradient x attention
    and integrated gradients, and "not faithful here" of the right letters told without the model.
    """
    mlm(config)
    config.task, config.data.name = "rationale", "rationales"
    model, data, train = config.model, config.data, config.train
    model.num_layers, model.width = 2, 32
    data.tokenizer, data.length, data.batch_size = "bytes", 22, 32  # 20 letters, and two marks
    train.steps, train.evaluate_every, train.checkpoint_every = 300, 300, 300


def bert_base(config: ConfigDict) -> None:
    """BERT base, uncased, for masked tokens (Devlin et al. 2019, section 3): 109,514,298 parameters, T=512. With heed's
    first values and optimizer, and without the pooler and next sentences, which --config.task=next_sentence
    --config.data.vocab_size=30519 adds: 110,106,428 parameters.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5e:4x4: 256 rows, 2.02 of 16.91 GB a device, 0.63 GB sent

    .venv/bin/python -m launch.train --config=configs/bert.py:base --workdir=runs/bert_base \\
      --config.data.name=wikipedia --config.data.validation_split='train[99%:]' --config.data.train_split='train[:99%]'
    """
    _published(config, layers=12, width=768, heads=12)


def large(config: ConfigDict) -> None:
    """BERT large, uncased, for masked tokens (Devlin et al. 2019, section 3): 335,174,458 parameters, T=512. As `base`.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5e:4x4: 256 rows, 4.85 of 16.91 GB a device, 1.98 GB sent

    .venv/bin/python -m launch.train --config=configs/bert.py:large --workdir=runs/bert_large \\
      --config.data.name=wikipedia --config.data.validation_split='train[99%:]' --config.data.train_split='train[:99%]'
    """
    _published(config, layers=24, width=1024, heads=16)


def _published(config: ConfigDict, layers: int, width: int, heads: int) -> None:
    config.family, config.task = "bert", "masked_lm"
    model, data, optimizer, train = config.model, config.data, config.optimizer, config.train
    model.num_layers, model.width, model.num_heads = layers, width, heads
    model.types, model.dropout, model.dtype, model.remat = 2, 0.1, "bfloat16", "dots"
    data.vocab_size, data.length, data.batch_size = 30521, 512, 256  # and the mask: 30522 tokens
    optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps = 1e-4, "linear", 10_000
    optimizer.epsilon, optimizer.beta2, optimizer.weight_decay = 1e-6, 0.999, 0.01
    optimizer.decayed, optimizer.final_fraction = "~(bias | scale)", 0.0
    train.steps, train.evaluate_every, train.checkpoint_every = 1_000_000, 10_000, 10_000
    train.evaluate_windows = 4096


VARIANTS = {
    "mlm": mlm,
    "mlm_long": mlm_long,
    "packages": packages,
    "roles": roles,
    "spans": spans,
    "rationale": rationale,
    "base": bert_base,
    "large": large,
}


def get_config(variant: str = "mlm") -> ConfigDict:
    """Returns the base config with a variant's changes."""
    config = base.get_config()
    VARIANTS[variant](config)
    return config
