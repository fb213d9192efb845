"""The weights of `transformers` from ours, model by model: which of ours each is, and in which form.

{their name: (form, our names)}; `{n}` is the number of a layer, of which ours have no more than the rest of their name.
Forms are linear and lose nothing, so that they map gradients as they map weights.
"""

from collections.abc import Callable, Mapping

import numpy as np

Array = np.ndarray
Form = Callable[..., Array]
Table = dict[str, tuple[Form, tuple[str, ...]]]


def same(x: Array) -> Array:
    """As it is."""
    return x


def flat(x: Array) -> Array:
    """Heads and their columns as one axis."""
    return x.ravel()


def turned(x: Array) -> Array:
    """(in, ...) as (out, in): torch's linear maps."""
    return x.reshape(len(x), -1).T


def turned_output(x: Array) -> Array:
    """(H, K, D) as (D, H K)."""
    return x.reshape(-1, x.shape[-1]).T


def beside(*three: Array) -> Array:
    """(D, H, K) of queries, keys and values as (D, 3 H K): GPT-2's Conv1D, which is not turned."""
    return np.hstack([x.reshape(len(x), -1) for x in three])


def chained(*three: Array) -> Array:
    """Their biases (H, K) as (3 H K)."""
    return np.concatenate([x.ravel() for x in three])


def rows(x: Array) -> Array:
    """(H, K, D) as (H K, D)."""
    return x.reshape(-1, x.shape[-1])


def head_by_head(*three: Array) -> Array:
    """(D, H, K) of queries, keys and values as (H 3 K, D): those of a head stand together (GPT-NeoX)."""
    x_DH3K = np.stack(three, axis=2)
    return x_DH3K.reshape(len(x_DH3K), -1).T


def biases_head_by_head(*three: Array) -> Array:
    """Their biases (H, K) as (H 3 K)."""
    return np.stack(three, axis=1).ravel()


def _named(prefix: str, ours: Mapping[str, str], form: Form, part: str = "weight", own: str = "kernel") -> Table:
    return {f"{prefix}{their}.{part}": (form, (f"{our}.{own}",)) for their, our in ours.items()}


def _norms(prefix: str, ours: Mapping[str, str], bias: bool) -> Table:
    found = _named(prefix, ours, same, own="scale")
    return found | _named(prefix, ours, same, "bias", "bias") if bias else found


_L = "model.layers.{n}."
_QKV = {f"self_attn.{name[0]}_proj": f"attention.{name}" for name in ("query", "key", "value")}
_THREE = ("attention.query", "attention.key", "attention.value")
_KERNELS, _BIASES = tuple(f"{name}.kernel" for name in _THREE), tuple(f"{name}.bias" for name in _THREE)
_TIED_LLAMA: Table = {
    "model.embed_tokens.weight": (same, ("embed.embedding",)),
    **_norms("model.", {"norm": "norm"}, bias=False),
    **_norms(_L, {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}, bias=False),
    **_named(_L, _QKV, turned),
    **_named(_L, {"self_attn.o_proj": "attention.output"}, turned_output),
    **_named(_L, {f"mlp.{name}_proj": f"mlp.{name}" for name in ("gate", "up", "down")}, turned),
}
_LLAMA = _TIED_LLAMA | {"lm_head.weight": (turned, ("head.kernel",))}
_QK_NORM = {"self_attn.q_norm": "attention.qk_norm.query", "self_attn.k_norm": "attention.qk_norm.key"}
_GEMMA_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_output_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_output_norm",
}
_GEMMA2 = _TIED_LLAMA | _norms(_L, _GEMMA_NORMS, bias=False)
_H, _X = "transformer.h.{n}.", "gpt_neox.layers.{n}."
_GPTJ_MLP = {"mlp.fc_in": "mlp.up", "mlp.fc_out": "mlp.down"}
_NEOX_MLP = {"mlp.dense_h_to_4h": "mlp.up", "mlp.dense_4h_to_h": "mlp.down"}

# By the variants of configs/gpt.py.
TABLES: dict[str, Table] = {
    "gpt2": {
        "transformer.wte.weight": (same, ("embed.embedding",)),
        "transformer.wpe.weight": (same, ("position.table",)),
        **_norms("transformer.", {"ln_f": "norm"}, bias=True),
        **_norms(_H, {"ln_1": "attention_norm", "ln_2": "mlp_norm"}, bias=True),
        f"{_H}attn.c_attn.weight": (beside, _KERNELS),
        f"{_H}attn.c_attn.bias": (chained, _BIASES),
        **_named(_H, {"attn.c_proj": "attention.output"}, rows),
        **_named(_H, {"attn.c_proj": "attention.output"}, same, "bias", "bias"),
        **_named(_H, {"mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}, same),
        **_named(_H, {"mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}, same, "bias", "bias"),
    },
    "gptj_6b": {
        "transformer.wte.weight": (same, ("embed.embedding",)),
        "lm_head.weight": (turned, ("head.kernel",)),
        "lm_head.bias": (same, ("head.bias",)),
        **_norms("transformer.", {"ln_f": "norm"}, bias=True),
        **_norms(_H, {"ln_1": "attention_norm"}, bias=True),
        **_named(_H, {name.replace("self_attn", "attn"): our for name, our in _QKV.items()}, turned),
        **_named(_H, {"attn.out_proj": "attention.output"}, turned_output),
        **_named(_H, _GPTJ_MLP, turned),
        **_named(_H, _GPTJ_MLP, same, "bias", "bias"),
    },
    "gptneox_20b": {
        "gpt_neox.embed_in.weight": (same, ("embed.embedding",)),
        "lm_head.weight": (turned, ("head.kernel",)),
        **_norms("gpt_neox.", {"final_layer_norm": "norm"}, bias=True),
        **_norms(_X, {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}, bias=True),
        f"{_X}attention.query_key_value.weight": (head_by_head, _KERNELS),
        f"{_X}attention.query_key_value.bias": (biases_head_by_head, _BIASES),
        **_named(_X, {"attention.dense": "attention.output"}, turned_output),
        **_named(_X, {"attention.dense": "attention.output"}, same, "bias", "bias"),
        **_named(_X, _NEOX_MLP, turned),
        **_named(_X, _NEOX_MLP, same, "bias", "bias"),
    },
    "llama_1b": _TIED_LLAMA,
    "llama_8b": _LLAMA,
    "mistral_7b": _LLAMA,
    "qwen2_7b": _LLAMA | _named(_L, _QKV, flat, "bias", "bias"),
    "qwen3_8b": _LLAMA | _norms(_L, _QK_NORM, bias=False),
    "gemma2_9b": _GEMMA2,
    "gemma3_1b": _GEMMA2 | _norms(_L, _QK_NORM, bias=False),
}

# Those of encoder-decoders, whose sides have tables of their own, and what both share another one.
_T5_MLPS = {
    "relu": {"wi": "mlp.up", "wo": "mlp.down"},
    "geglu": {"wi_0": "mlp.gate", "wi_1": "mlp.up", "wo": "mlp.down"},
}
_T5_BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def _t5(side: str, mlp: str) -> Table:
    parts = {"attention": "SelfAttention"} | ({"cross": "EncDecAttention"} if side == "decoder" else {})
    found: Table = {f"{side}.{_T5_BIAS}": (same, ("attention_bias.table",))}
    found |= _norms(f"{side}.", {"final_layer_norm": "norm"}, bias=False)
    for number, (ours, their) in enumerate(parts.items()):
        layer = f"{side}.block.{{n}}.layer.{number}."
        found |= _norms(layer, {"layer_norm": f"{ours}_norm"}, bias=False)
        found |= _named(layer, {f"{their}.{one[0]}": f"{ours}.{one}" for one in ("query", "key", "value")}, turned)
        found |= _named(layer, {f"{their}.o": f"{ours}.output"}, turned_output)
    last = f"{side}.block.{{n}}.layer.{len(parts)}."
    found |= _norms(last, {"layer_norm": "mlp_norm"}, bias=False)
    return found | _named(last, {f"DenseReluDense.{name}": our for name, our in _T5_MLPS[mlp].items()}, turned)


def _marian(side: str) -> Table:
    layer, found = f"model.{side}.layers.{{n}}.", dict[str, tuple[Form, tuple[str, ...]]]()
    for ours, their in {"attention": "self_attn", **({"cross": "encoder_attn"} if side == "decoder" else {})}.items():
        found |= _norms(layer, {f"{their}_layer_norm": f"{ours}_norm"}, bias=True)
        three = {f"{their}.{one[0]}_proj": f"{ours}.{one}" for one in ("query", "key", "value")}
        found |= _named(layer, three, turned) | _named(layer, three, flat, "bias", "bias")
        out = {f"{their}.out_proj": f"{ours}.output"}
        found |= _named(layer, out, turned_output) | _named(layer, out, same, "bias", "bias")
    linear = {"fc1": "mlp.up", "fc2": "mlp.down"}
    found |= _named(layer, linear, turned) | _named(layer, linear, same, "bias", "bias")
    return found | _norms(layer, {"final_layer_norm": "mlp_norm"}, bias=True)


_SHARED: Table = {"shared.weight": (same, ("embed.embedding",))}
# By the variants of configs/encoder_decoder.py: {side: table}.
PAIR_TABLES: dict[str, dict[str, Table]] = {
    "t5_small": {"": _SHARED, **{side: _t5(side, "relu") for side in ("encoder", "decoder")}},
    "t5_v1_1_small": {
        "": _SHARED | {"lm_head.weight": (turned, ("head.kernel",))},
        **{side: _t5(side, "geglu") for side in ("encoder", "decoder")},
    },
    "transformer_base": {
        "": {"model.shared.weight": (same, ("embed.embedding",))},
        **{side: _marian(side) for side in ("encoder", "decoder")},
    },
}


def theirs_of_pairs(
    tables: Mapping[str, Table], ours: Mapping[str, Array], layers: Mapping[str, int]
) -> dict[str, Array]:
    """`theirs` of both sides of an encoder-decoder, which have so many layers, and of what they share."""
    found = dict[str, Array]()
    for side, table in tables.items():
        sides = {path: path.partition(".")[0] if path.partition(".")[0] in layers else "" for path in ours}
        own = {path.removeprefix(f"{side}.") if side else path: x for path, x in ours.items() if sides[path] == side}
        found |= theirs(table, own, layers.get(side, 0))
    return found


def theirs(table: Table, ours: Mapping[str, Array], num_layers: int) -> dict[str, Array]:
    """Their weights, or gradients, from all of ours by their paths, such as `stack.blocks.mlp.up.kernel`."""
    found, used = {}, set()
    for name, (form, parts) in table.items():
        layered = "{n}" in name
        paths = [f"stack.blocks.{part}" if layered else part for part in parts]
        used |= {*paths}
        for n in range(num_layers if layered else 1):
            found[name.format(n=n)] = form(*(ours[path][n] if layered else ours[path] for path in paths))
    assert used == ours.keys(), used ^ ours.keys()
    return found


_B = "bert.encoder.layer.{n}."
_MAPS = {"intermediate.dense": "mlp.up", "output.dense": "mlp.down"}
_SELF = {f"attention.self.{name}": f"attention.{name}" for name in ("query", "key", "value")}
_BODY: Table = {
    **{
        f"bert.embeddings.{name}_embeddings.weight": (same, (ours,))
        for name, ours in {"word": "embed.embedding", "position": "position.table", "token_type": "types.table"}.items()
    },
    **_norms("bert.embeddings.", {"LayerNorm": "embedding_norm"}, bias=True),
    **_named(_B, _SELF, turned),
    **_named(_B, _SELF, flat, "bias", "bias"),
    **_named(_B, {"attention.output.dense": "attention.output"}, turned_output),
    **_named(_B, {"attention.output.dense": "attention.output"}, same, "bias", "bias"),
    **_norms(_B, {"attention.output.LayerNorm": "attention_norm", "output.LayerNorm": "mlp_norm"}, bias=True),
    **_named(_B, _MAPS, turned),
    **_named(_B, _MAPS, same, "bias", "bias"),
}


def _map(their: str, our: str) -> Table:
    return _named("", {their: our}, turned) | _named("", {their: our}, same, "bias", "bias")


_ON_TOKENS = {
    **_map("cls.predictions.transform.dense", "transform.dense"),
    **_norms("cls.predictions.transform.", {"LayerNorm": "transform.norm"}, bias=True),
    "cls.predictions.bias": (same, ("head.bias",)),
}
_POOLER = _map("bert.pooler.dense", "pooler")
# By the heads of BERT.
BERT_TABLES: dict[str, Table] = {
    "token": _BODY | _ON_TOKENS,
    "pair": _BODY | _ON_TOKENS | _POOLER | _map("cls.seq_relationship", "answer"),
    "class": _BODY | _POOLER | _map("classifier", "answer"),
    "tag": _BODY | _map("classifier", "answer"),
    "span": _BODY | _map("qa_outputs", "answer"),
}
