"""Makes maps.npz: attention, mean over heads, in the middle of the validation text, of a GPT and a BERT of 12 layers.

Trained by

    python -m launch.train --config=gpt:quickstart --workdir=GPT --config.model.num_layers=12 --config.model.width=64 \
        --config.model.num_heads=4 --config.data.length=64 --config.data.batch_size=32 --config.train.steps=500
    python -m launch.train --config=bert:mlm --workdir=BERT --config.model.num_layers=12 --config.model.width=64 \
        --config.model.num_heads=4 --config.model.mlp_width=128 --config.data.length=64 --config.data.batch_size=32 \
        --config.train.steps=800

this is `python -m tests.eval.explain.data.make GPT BERT`. Arrays are (examples, layers, n, n), in float16.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from eval.explain.capture import capture
from eval.runs import open_run
from model.attention.looked import Looked

EXAMPLES = 2
SITE = "stack.attention.weights"


def maps(folder: str) -> np.ndarray:
    """Of the run's own validation text."""
    run = open_run(folder)
    length, stream = run.config.data.length, run.data.tokens("validation")
    start = len(stream) // 2
    tokens_BT = jnp.asarray(np.reshape(stream[start : start + EXAMPLES * length], (EXAMPLES, length)), jnp.int32)
    maps_LBnn = capture(run.model, [SITE], reduce=Looked.mean, tokens_BT=tokens_BT)[SITE]
    return np.asarray(maps_LBnn, np.float16).swapaxes(0, 1)


if __name__ == "__main__":
    gpt, bert = map(maps, sys.argv[1:])
    np.savez_compressed(Path(__file__).with_name("maps.npz"), gpt=gpt, bert=bert)
