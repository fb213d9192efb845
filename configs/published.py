"""The shapes of published decoders, variants of `configs/gpt.py`: the numbers that a checkpoint of theirs needs.

Each has the number of parameters that its story names, and the logits, loss and gradients of its namesake in
`transformers` (tests/model/test_published.py). How they are trained here is a start, not what their authors did. What a
story says of slices is told by launch.plan with these flags: of a device at the peak, and sent by it in a step. A
sliding window of W, which sees W keys, is `window(W - 1)` here.
"""

from ml_collections import ConfigDict


def gpt2(config: ConfigDict) -> None:
    """GPT-2 small (Radford et al. 2019): 124,439,808 parameters, T=1024, bfloat16.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5e:4x4: 512 rows, 6.55 of 16.91 GB a device, 0.77 GB sent

    .venv/bin/python -m launch.train --config=configs/gpt.py:gpt2 --workdir=runs/gpt2 \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    model.num_layers, model.width, model.num_heads = 12, 768, 12
    model.norm, model.position, model.use_bias = "layer(1e-5)", "learned", True
    model.remat, model.dtype = "dots", "bfloat16"
    data.vocab_size, data.length, data.batch_size = 50257, 1024, 512
    config.optimizer.learning_rate, config.optimizer.decayed = 6e-4, "~(bias | scale)"
    _run(config)


def gptj_6b(config: ConfigDict) -> None:
    """GPT-J (Wang and Komatsuzaki 2021): 6,050,882,784 parameters, T=2048: attention and MLP side by side behind one
    norm, and neighbouring columns turned, the first 64 of each head's 256.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v6e:8x8: 256 rows, 5.09 of 33.55 GB a device, 34.79 GB sent

    .venv/bin/python -m launch.train --config=configs/gpt.py:gptj_6b --workdir=runs/gptj_6b \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    model.num_layers, model.width, model.num_heads = 28, 4096, 16
    model.norm, model.norm_place, model.use_bias = "layer(1e-5)", "parallel_shared", "mlp & norm & head"
    model.position, model.tied = "rope(fraction=0.25, pairs=interleaved)", False
    data.vocab_size, data.length, data.batch_size = 50400, 2048, 256
    _large(config)


def gptneox_20b(config: ConfigDict) -> None:
    """GPT-NeoX-20B (Black et al. 2022): 20,554,567,680 parameters, T=2048: attention and MLP side by side, each behind
    a norm of its own, and a quarter of the columns turned.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5p:4x4x4: 512 rows, 19.42 of 102.80 GB a device, 121.25 GB sent

    .venv/bin/python -m launch.train --config=configs/gpt.py:gptneox_20b --workdir=runs/gptneox_20b \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    model.num_layers, model.width, model.num_heads = 44, 6144, 64
    model.norm, model.norm_place, model.use_bias = "layer(1e-5)", "parallel", True
    model.position, model.tied = "rope(fraction=0.25)", False
    data.vocab_size, data.length, data.batch_size = 50432, 2048, 512
    _large(config)


def llama_1b(config: ConfigDict) -> None:
    """Llama 3.2 1B (Grattafiori et al. 2024): 1,235,814,400 parameters, T=2048, bfloat16.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5e:4x4: 64 rows, 2.71 of 16.91 GB a device, 6.96 GB sent

    .venv/bin/python -m launch.train --config=configs/gpt.py:llama_1b --workdir=runs/llama_1b \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    _llama3(config, factor=32)
    model.num_layers, model.width, model.num_heads, model.num_kv_heads, model.mlp_width = 16, 2048, 32, 8, 8192
    data.length, data.batch_size = 2048, 64


def llama_8b(config: ConfigDict) -> None:
    """Llama 3.1 8B (Grattafiori et al. 2024, table 3): 8,030,261,248 parameters, T=8192, bfloat16.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5e:16x16: 256 rows, 4.35 of 16.91 GB a device, 44.12 GB sent
    --topology=v6e:16x16 --config.data.batch_size=512: 512 rows, 8.41 of 33.55 GB a device, 44.26 GB sent
    --topology=v5p:4x4x4 --config.data.batch_size=128: 128 rows, 10.10 of 102.80 GB a device, 44.25 GB sent
    --topology=tpu7x:4x4x4: 256 rows, 8.99 of 101.74 GB a device, 29.35 GB sent
    --topology=v5e:16x16 --slices=2 --config.mesh.replica=2 --config.data.batch_size=512:
      512 rows, 4.53 of 16.91 GB a device, 41.38 GB sent, 0.07 between slices

    .venv/bin/python -m launch.train --config=configs/gpt.py:llama_8b --workdir=runs/llama_8b \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    _llama3(config, factor=8)
    model.num_layers, model.width, model.num_heads, model.num_kv_heads, model.mlp_width = 32, 4096, 32, 8, 14336
    model.tied = False
    data.length, data.batch_size = 8192, 256


def mistral_7b(config: ConfigDict) -> None:
    """Mistral 7B v0.1 (Jiang et al. 2023, table 1): 7,241,732,096 parameters, T=8192, a sliding window of 4096 in every
    layer.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v6e:8x8: 256 rows, 17.20 of 33.55 GB a device, 42.95 GB sent

    .venv/bin/python -m launch.train --config=configs/gpt.py:mistral_7b --workdir=runs/mistral_7b \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    model.num_layers, model.width, model.num_heads, model.num_kv_heads, model.mlp_width = 32, 4096, 32, 8, 14336
    model.mlp, model.norm, model.mask, model.tied = "swiglu", "rms(1e-5)", "causal & window(4095)", False
    data.vocab_size, data.length, data.batch_size = 32000, 8192, 256
    _large(config)


def qwen2_7b(config: ConfigDict) -> None:
    """Qwen 2 7B (Yang et al. 2024, table 1): 7,615,616,512 parameters, T=8192, biases in queries, keys and values
    alone.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=tpu7x:4x4x4: 256 rows, 8.49 of 101.74 GB a device, 42.67 GB sent

    .venv/bin/python -m launch.train --config=configs/gpt.py:qwen2_7b --workdir=runs/qwen2_7b \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    model.num_layers, model.width, model.num_heads, model.num_kv_heads, model.mlp_width = 28, 3584, 28, 4, 18944
    model.mlp, model.position, model.use_bias, model.tied = "swiglu", "rope(base=1000000)", "qkv", False
    data.vocab_size, data.length, data.batch_size = 152064, 8192, 256
    _large(config)


def qwen3_8b(config: ConfigDict) -> None:
    """Qwen 3 8B (Yang et al. 2025, table 1): 8,190,735,360 parameters, T=8192, queries and keys normalised.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5p:4x4x4: 256 rows, 18.34 of 102.80 GB a device, 45.96 GB sent

    .venv/bin/python -m launch.train --config=configs/gpt.py:qwen3_8b --workdir=runs/qwen3_8b \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    model.num_layers, model.width, model.num_heads, model.num_kv_heads, model.mlp_width = 36, 4096, 32, 8, 12288
    model.mlp, model.position, model.edits, model.tied = "swiglu", "rope(base=1000000)", "qk_norm", False
    data.vocab_size, data.length, data.batch_size = 151936, 8192, 256
    _large(config)


def gemma2_9b(config: ConfigDict) -> None:
    """Gemma 2 9B (Gemma Team 2024, table 1): 9,241,705,984 parameters, T=8192, every other layer with a sliding window
    of 4096, norms before and after each branch, and soft caps of scores and logits.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v5p:4x4x4: 256 rows, 20.14 of 102.80 GB a device, 55.93 GB sent

    .venv/bin/python -m launch.train --config=configs/gpt.py:gemma2_9b --workdir=runs/gemma2_9b \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    _gemma(config)
    model.num_layers, model.width, model.num_heads, model.num_kv_heads, model.mlp_width = 42, 3584, 16, 8, 14336
    model.mask, model.soft_cap, model.logits_soft_cap = "(causal & window(4095)) + causal", 50.0, 30.0
    data.vocab_size, data.length, data.batch_size = 256000, 8192, 256


def gemma3_1b(config: ConfigDict) -> None:
    """Gemma 3 1B (Gemma Team 2025, table 1): 999,885,952 parameters, T=8192, five layers with a sliding window of 512
    and one without, which turns a hundred times slower; queries and keys normalised.

    By the compiler for TPUs (`make test-tpu`, 2026-11-27), not yet run:

    --topology=v6e:4x4: 256 rows, 20.01 of 33.55 GB a device, 6.00 GB sent

    .venv/bin/python -m launch.train --config=configs/gpt.py:gemma3_1b --workdir=runs/gemma3_1b \\
      --config.data.name=lm1b --config.data.validation_split=test
    """
    model, data = config.model, config.data
    _gemma(config)
    model.num_layers, model.width, model.num_heads, model.num_kv_heads, model.mlp_width = 26, 1152, 4, 1, 6912
    model.mask, model.position = "5 * (causal & window(511)) + causal", "5 * rope + rope(base=1000000)"
    model.edits = "qk_norm(rms_plus_one)"
    data.vocab_size, data.length, data.batch_size = 262144, 8192, 256


def _llama3(config: ConfigDict, factor: int) -> None:
    """What the models of Grattafiori et al. 2024, table 3, have in common."""
    model = config.model
    model.mlp, model.norm, model.position = "swiglu", "rms(1e-5)", f"rope_llama3({factor})"
    config.data.vocab_size = 128256
    _large(config)


def _gemma(config: ConfigDict) -> None:
    """What Gemma 2 and 3 have in common: heads of 256 columns whatever the width, and norms that begin at one."""
    model = config.model
    model.head_width, model.mlp, model.embedding = 256, "geglu", "scaled"
    model.norm, model.norm_place = "rms_plus_one", "sandwich"
    _large(config)


def _large(config: ConfigDict) -> None:
    """A start for billions of parameters: everything is computed again in the backward pass."""
    config.model.remat, config.model.dtype = "full", "bfloat16"
    config.optimizer.learning_rate = 3e-4
    _run(config)


def _run(config: ConfigDict) -> None:
    train = config.train
    config.optimizer.warmup_steps = 2000
    train.steps, train.evaluate_every, train.checkpoint_every = 100_000, 1000, 1000
