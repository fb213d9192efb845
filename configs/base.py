"""Every key that all runs share, once, with its default, its meaning and its unit.

A default has the type of the key: int, float, str or bool. The keys of `config.model` are those of its family, and
those of `config.objective` those of its task, written in the same way in their dataclasses (model/families/table.py and
train/tasks/table.py). `--help` of each command prints the comments of all.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults, in sections, open to changes; `launch.configs.load` checks and locks the result.

    `config.model` and `config.objective` are empty: they take what differs from the defaults, which `load` adds.
    """
    config = ConfigDict(
        {name: {} for name in ("model", "objective", "data", "optimizer", "train", "mesh")}, type_safe=False
    )
    data, optimizer, train, mesh = config.data, config.optimizer, config.train, config.mesh

    config.family = "gpt"  # the kind of model (model/families/table.py), which has keys of its own, config.model
    config.task = "language_model"  # what is learned: language_model, masked_lm, classification, tagging, span_qa, ...

    data.name = "python_stdlib"  # a TFDS dataset, or one made here: python_stdlib, packages, roles, questions, ...
    data.path = ""  # glob of one's own files instead of data.name: folder/*.txt, or examples, *.jsonl or *.csv
    data.dir = ""  # folder of prepared datasets and token caches; empty: the default of TFDS
    data.feature = "text"  # the feature of the dataset that holds the text
    data.train_split = "train"  # split to learn from
    data.validation_split = "validation"  # split to evaluate on
    data.tokenizer = "bpe"  # bpe (byte-level, trained on the train split) or bytes
    data.vocab_size = 2048  # V, tokens of the BPE vocabulary; not read for bytes
    data.length = 256  # T, tokens per window
    data.batch_size = 16  # B, windows of a global batch, all micro-batches together
    data.seed = 0  # fixes the order of the windows, and nothing else
    data.order = "own"  # of the windows, with several train.seeds: own (seed i reads data.seed + i) or shared (one)
    data.prefetch = 8  # batches prepared ahead of the step

    optimizer.name = "adamw"  # adamw, lion, muon or adafactor
    optimizer.learning_rate = 1e-3  # highest value of the schedule
    optimizer.schedule = "cosine"  # after the warm-up: constant, cosine, linear, wsd or inverse_sqrt
    optimizer.warmup_steps = 100  # steps of linear warm-up from 0
    optimizer.decay_fraction = 0.2  # share of the steps in which wsd decays; not read by the other schedules
    optimizer.final_fraction = 0.1  # end of cosine, linear and wsd, as a share of learning_rate
    optimizer.beta1 = 0.9  # decay of the first moment (muon: momentum); adafactor keeps none at 0
    optimizer.beta2 = 0.95  # decay of the second moment (lion: of the momentum)
    optimizer.epsilon = 1e-8  # added to the root of AdamW's second moment; not read by lion and adafactor
    optimizer.weight_decay = 0.1  # decoupled, times the learning rate
    optimizer.decayed = "kernel"  # what decays: kernel, embedding, table, bias, scale, all, none, joined by |, & and ~
    optimizer.clip_norm = 1.0  # largest global norm of a gradient; 0: not clipped

    train.steps = 1000  # updates in all
    train.accumulate = 1  # micro-batches per update; divides data.batch_size
    train.seed = 0  # fixes the first parameters, and dropout where train.dropout_seed is -1
    train.dropout_seed = -1  # fixes dropout, the same in all train.seeds; -1: each drops by its own seed
    train.seeds = 1  # N, seeds trained at once: train.seed, train.seed + 1, ...
    train.label_smoothing = 0.0  # share of the target spread evenly over the vocabulary
    train.z_loss = 0.0  # weight of the squared log-normaliser, added to the loss
    train.log_every = 10  # steps between two lines of metrics; the first and the last step have one, too
    train.evaluate_every = 200  # steps between two evaluations
    train.evaluate_windows = 0  # validation windows of an evaluation, spread evenly over the text; 0: all
    train.checkpoint_every = 200  # steps between two checkpoints
    train.keep_last = 2  # newest checkpoints kept
    train.keep_best = 1  # checkpoints of lowest validation loss kept besides
    train.step = "partitioned"  # what devices send: partitioned, partitioned_float32 (adds gradients so), explicit
    train.prompt = "def main("  # prompt of the sample printed at the end

    mesh.replica = 1  # copies of the parameters, across the slow network; also carries train.seeds
    mesh.fsdp = -1  # devices that share parameters and batch; -1: all that remain
    mesh.tensor = 1  # devices that share heads, MLP and vocabulary
    mesh.context = 1  # devices that share the sequence
    mesh.rules = "fsdp"  # over mesh.fsdp: fsdp (parameters, moments), optimizer (moments alone), replicated (nothing)
    mesh.place = ""  # of parameters that lie elsewhere: head.kernel=vocab:fsdp+tensor & embed:context, norm.*=whole

    return config
