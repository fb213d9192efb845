"""Every key of every config, once, with its default, its meaning and its unit.

A default has the type of the key: int, float, str or bool. `--help` of each command prints this file's comments.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults, in sections, open to changes; `launch.configs.load` checks and locks the result."""
    model, data, optimizer, train, mesh = sections = [ConfigDict(type_safe=False) for _ in range(5)]

    model.num_layers = 4  # layers
    model.width = 256  # D, width of the residual stream
    model.num_heads = 4  # H, query heads; divides width
    model.num_kv_heads = 0  # G, key and value heads; divides num_heads; 0: as num_heads
    model.mlp_width = 0  # F, hidden width of the MLP; 0: 4 x width
    model.mlp = "gelu"  # gelu, relu2, geglu or swiglu
    model.norm = "rms"  # rms or layer
    model.norm_place = "pre"  # pre or post: normalise before each block, or after the residual sum
    model.position = "rope"  # rope, rope_linear, rope_ntk, rope_yarn(4, 2048), rope_llama3, learned, sinusoidal or none
    model.bias = "none"  # added to scores by distance: none, alibi, t5, t5_causal, kerple, kerple_power or fire
    model.mask = "causal"  # which keys a query sees: causal & window(128), strided(64), ... joined by &, | and ~
    model.core = "auto"  # how attention is computed: auto, or a core of launch.attention --table, which works or raises
    model.scale = 0.0  # factor on the attention scores; 0: 1/sqrt(head width)
    model.soft_cap = 0.0  # c of c tanh(score / c), which bounds attention scores; 0: none
    model.sinks = False  # one learned score per head that no value stands behind
    model.qk_norm = False  # normalise queries and keys per head
    model.use_bias = False  # biases in projections, MLPs and norms
    model.tied = True  # the output head is the embedding, transposed
    model.dropout = 0.0  # share of activations dropped in training
    model.remat = "none"  # what the backward pass computes again: none, dots (all but matrix products) or full
    model.unroll = 1  # layers per iteration of the scan over layers; num_layers: unrolled
    model.dtype = "float32"  # dtype of the computation; parameters are always float32

    data.name = "python_stdlib"  # a TFDS text dataset
    data.path = ""  # glob of one's own text files, such as folder/*.txt, instead of data.name
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
    optimizer.weight_decay = 0.1  # decoupled, times the learning rate; kernels only
    optimizer.clip_norm = 1.0  # largest global norm of a gradient; 0: not clipped

    train.steps = 1000  # updates in all
    train.accumulate = 1  # micro-batches per update; divides data.batch_size
    train.seed = 0  # fixes the first parameters and dropout
    train.seeds = 1  # N, seeds trained at once: train.seed, train.seed + 1, ...
    train.label_smoothing = 0.0  # share of the target spread evenly over the vocabulary
    train.z_loss = 0.0  # weight of the squared log-normaliser, added to the loss
    train.log_every = 10  # steps between two lines of metrics
    train.evaluate_every = 200  # steps between two evaluations
    train.evaluate_windows = 0  # validation windows of an evaluation, spread evenly over the text; 0: all
    train.checkpoint_every = 200  # steps between two checkpoints
    train.keep_last = 2  # newest checkpoints kept
    train.keep_best = 1  # checkpoints of lowest validation loss kept besides
    train.prompt = "def main("  # prompt of the sample printed at the end

    mesh.replica = 1  # copies of the parameters, across the slow network; also carries train.seeds
    mesh.fsdp = -1  # devices that share parameters and batch; -1: all that remain
    mesh.tensor = 1  # devices that share heads, MLP and vocabulary
    mesh.context = 1  # devices that share the sequence

    names = ("model", "data", "optimizer", "train", "mesh")
    return ConfigDict(dict(zip(names, sections, strict=True)), type_safe=False)
