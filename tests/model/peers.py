"""What `transformers` computes, for tests/model/test_peers.py: run by the Python of `.cache/oracle`, which lacks jax.

    python tests/model/peers.py QUESTIONS ANSWERS

Questions are {name: {"kind": ..., numbers}} in JSON beside arrays in QUESTIONS.npz; answers are arrays in ANSWERS.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

Arrays = dict[str, np.ndarray]


def frequencies(asked: dict[str, Any], arrays: Arrays) -> np.ndarray:
    """The frequencies of rotated pairs, and at last the gain."""
    found, gain = ROPE_INIT_FUNCTIONS[asked["rope"]["rope_type"]](_llama(asked), "cpu")
    return np.append(found.numpy(), gain)


def buckets(asked: dict[str, Any], arrays: Arrays) -> np.ndarray:
    """T5's bucket of each distance j - i."""
    both, number, most = (asked[key] for key in ("bidirectional", "buckets", "max_distance"))
    return T5Attention._relative_position_bucket(torch.tensor(arrays["distances"]), both, number, most).numpy()


def slopes(asked: dict[str, Any], arrays: Arrays) -> np.ndarray:
    """ALiBi's slope of each head, read off BLOOM's bias of the second of two keys."""
    return build_alibi_tensor(torch.ones(1, 2), asked["heads"], torch.float32)[:, 0, 1].numpy()


def gpt2(asked: dict[str, Any], arrays: Arrays) -> np.ndarray:
    """GPT-2's logits: our kernels are its Conv1D weights, query, key and value side by side."""
    D, layers = asked["width"], asked["layers"]
    config = GPT2Config(
        vocab_size=asked["vocab"],
        n_positions=asked["length"],
        n_embd=D,
        n_layer=layers,
        n_head=asked["heads"],
        n_inner=asked["mlp_width"],
        layer_norm_epsilon=1e-6,
    )
    own = {"wte.weight": arrays["embed.embedding"], "wpe.weight": arrays["position.table"]}
    own |= {"ln_f.weight": arrays["norm.scale"], "ln_f.bias": arrays["norm.bias"]}
    for n in range(layers):
        layer = {name.removeprefix("stack.blocks."): x[n] for name, x in arrays.items() if name.startswith("stack.")}
        for norm, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
            own |= {f"h.{n}.{theirs}.weight": layer[f"{norm}.scale"], f"h.{n}.{theirs}.bias": layer[f"{norm}.bias"]}
        three = [layer[f"attention.{name}.kernel"].reshape(D, -1) for name in ("query", "key", "value")]
        biases = [layer[f"attention.{name}.bias"].ravel() for name in ("query", "key", "value")]
        own |= {f"h.{n}.attn.c_attn.weight": np.hstack(three), f"h.{n}.attn.c_attn.bias": np.hstack(biases)}
        own |= {f"h.{n}.attn.c_proj.weight": layer["attention.output.kernel"].reshape(-1, D)}
        own |= {f"h.{n}.attn.c_proj.bias": layer["attention.output.bias"]}
        for ours, theirs in (("up", "c_fc"), ("down", "c_proj")):
            own |= {f"h.{n}.mlp.{theirs}.{part}": layer[f"mlp.{ours}.{name}"] for part, name in _PARTS}
    return _logits(GPT2LMHeadModel(config), {f"transformer.{name}": x for name, x in own.items()}, arrays)


def llama(asked: dict[str, Any], arrays: Arrays) -> np.ndarray:
    """Llama's logits, with grouped heads and any rotation: its weights are our kernels, transposed."""
    D, own = asked["width"], {"model.embed_tokens.weight": arrays["embed.embedding"]}
    own |= {"model.norm.weight": arrays["norm.scale"], "lm_head.weight": arrays["head.kernel"].T}
    for n in range(asked["layers"]):
        layer = {name.removeprefix("stack.blocks."): x[n] for name, x in arrays.items() if name.startswith("stack.")}
        at = f"model.layers.{n}"
        own |= {f"{at}.input_layernorm.weight": layer["attention_norm.scale"]}
        own |= {f"{at}.post_attention_layernorm.weight": layer["mlp_norm.scale"]}
        for ours in ("query", "key", "value"):
            own |= {f"{at}.self_attn.{ours[0]}_proj.weight": layer[f"attention.{ours}.kernel"].reshape(D, -1).T}
        own |= {f"{at}.self_attn.o_proj.weight": layer["attention.output.kernel"].reshape(-1, D).T}
        own |= {f"{at}.mlp.{ours}_proj.weight": layer[f"mlp.{ours}.kernel"].T for ours in ("gate", "up", "down")}
    return _logits(LlamaForCausalLM(_llama(asked)), own, arrays)


_PARTS = (("weight", "kernel"), ("bias", "bias"))
KINDS: dict[str, Callable[[dict[str, Any], Arrays], np.ndarray]] = {
    "frequencies": frequencies,
    "buckets": buckets,
    "slopes": slopes,
    "gpt2": gpt2,
    "llama": llama,
}


def _llama(asked: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=asked.get("vocab", 8),
        hidden_size=asked["width"],
        intermediate_size=asked.get("mlp_width", 8),
        num_hidden_layers=asked.get("layers", 1),
        num_attention_heads=asked["heads"],
        num_key_value_heads=asked.get("kv_heads", asked["heads"]),
        max_position_embeddings=asked["length"],
        rms_norm_eps=1e-6,
        rope_parameters=asked["rope"],
        tie_word_embeddings=False,
    )


def _logits(model: torch.nn.Module, own: Arrays, arrays: Arrays) -> np.ndarray:
    known = {name: torch.tensor(np.ascontiguousarray(x)) for name, x in own.items()}
    missing, unknown = model.load_state_dict(known, strict=False)
    # The tied head, and buffers that hold no parameter, are the only ones that may be missing.
    assert not unknown, unknown
    assert {name for name in missing if "lm_head" not in name} == set(), missing
    with torch.no_grad():
        return model.eval()(torch.tensor(arrays["tokens"])).logits.numpy()


def main(questions: str, answers: str) -> None:
    """Answers every question."""
    torch.set_num_threads(1)
    with open(questions) as file:
        asked = json.load(file)
    with np.load(f"{questions}.npz") as stored:
        all_arrays = dict(stored)
    found = {}
    for name, one in asked.items():
        own = {key.removeprefix(f"{name}/"): x for key, x in all_arrays.items() if key.startswith(f"{name}/")}
        found[name] = KINDS[one["kind"]](one, own)
    np.savez(answers, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
