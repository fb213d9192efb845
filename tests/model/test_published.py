"""The published shapes beside `transformers`: configs/published.py and the configs that lie beside checkpoints, at
small sizes that are equal and with the same weights, give the same logits, loss and gradients, beyond each window."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import published
from launch.configs import load
from model.families.family import Model
from tests.model import reference
from tests.model.asking import MARKS, ask
from tests.model.peer_tables import TABLES, theirs
from train.experiment import make_model_config
from train.tasks.language_model import language_model

pytestmark = MARKS
B, V, LENGTH = 2, 29, 131


class Case(NamedTuple):
    """A variant of configs/gpt.py, what the config.json of its namesake says beside sizes, and small sizes for both.

    `window` is theirs, which sees so many keys.
    """

    variant: str
    config: dict[str, Any]
    layers: int = 3
    heads: int = 6
    kv_heads: int = 2
    head_width: int = 10
    width: int = 36
    mlp_width: int = 37
    window: int = 0
    size: float = 1.0  # of the weights; Gemma's make norms of twice the size, and attention so sharp that float32 errs

    @property
    def lengths(self) -> tuple[int, ...]:
        """Around the window, and beyond."""
        return (self.window - 1, self.window, self.window + 1, 3 * self.window) if self.window else (67,)

    def ours(self) -> ConfigDict:
        """The committed config, with small sizes, in float32."""
        sizes = {
            "num_layers": self.layers,
            "width": self.width,
            "num_heads": self.heads,
            "num_kv_heads": self.kv_heads,
            "head_width": self.head_width,
            "mlp_width": self.mlp_width,
        }
        changes: dict[str, Any] = {f"model.{key}": size for key, size in sizes.items()}
        changes |= {"data.vocab_size": V, "data.length": LENGTH, "model.dtype": "float32"}
        mask, wide = load(f"gpt:{self.variant}").model.mask, self.config.get("sliding_window", 0)
        assert ("window" in mask) == (f"window({wide - 1})" in mask)  # which sees as many keys as their window is wide
        changes["model.mask"] = mask.replace(f"window({wide - 1})", f"window({self.window - 1})")
        return load(f"gpt:{self.variant}", **changes)

    def theirs(self) -> dict[str, Any]:
        """The published config, with small sizes."""
        sizes: dict[str, Any] = {
            "vocab_size": V,
            "hidden_size": self.width,
            "intermediate_size": self.mlp_width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "max_position_embeddings": LENGTH,
            "pad_token_id": None,  # whose row of the embedding gets no gradient of its places
        }
        own = {"sliding_window": self.window, "query_pre_attn_scalar": self.head_width}
        return sizes | self.config | {key: value for key, value in own.items() if key in self.config}


def llama(factor: float, tied: bool) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_parameters": scaling, "tie_word_embeddings": tied}


def qwen(model_type: str) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1000000.0}
    untied = {"tie_word_embeddings": False, "use_sliding_window": False}
    return {"model_type": model_type, "rms_norm_eps": 1e-6, "rope_parameters": rope, **untied}


_GPT = {"layers": 3, "heads": 3, "kv_heads": 0, "mlp_width": 0}
_GEMMA = {"rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
_GEMMA |= {"query_pre_attn_scalar": 256}
CASES = [
    Case(
        "gpt2",
        {"model_type": "gpt2", "n_embd": 21, "n_layer": 3, "n_head": 3, "n_positions": LENGTH, "vocab_size": V},
        **_GPT,
        head_width=7,
        width=21,
    ),
    Case(
        "gptj_6b",
        {"model_type": "gptj", "n_embd": 48, "n_layer": 3, "n_head": 3, "n_positions": LENGTH, "rotary_dim": 4},
        **_GPT,
        head_width=16,
        width=48,
    ),
    Case(
        "gptneox_20b",
        {
            "model_type": "gpt_neox",
            "hidden_act": "gelu_fast",
            "intermediate_size": 4 * 48,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        },
        **_GPT,
        head_width=16,
        width=48,
    ),
    Case("llama_1b", llama(32.0, tied=True)),
    Case("llama_8b", llama(8.0, tied=False)),
    Case(
        "mistral_7b",
        {"model_type": "mistral", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "sliding_window": 4096},
        window=7,
    ),
    Case("qwen2_7b", qwen("qwen2"), head_width=10, width=60),
    Case("qwen3_8b", qwen("qwen3")),
    Case("gemma2_9b", {"model_type": "gemma2", **_GEMMA, "sliding_window": 4096}, layers=5, window=7, size=0.5),
    Case(
        "gemma3_1b",
        {"model_type": "gemma3_text", **_GEMMA, "sliding_window": 512},
        layers=7,
        heads=4,
        kv_heads=1,
        window=5,
    ),
]
RUNS = [(case, T) for case in CASES for T in case.lengths]
NAMES = [f"{case.variant}, T={T}" for case, T in RUNS]


def abstract(case: Case) -> Model:
    config = case.ours()
    model_config = make_model_config(config, config.data.vocab_size)
    return nnx.eval_shape(lambda: model_config.build(nnx.Rngs(0)))


def parameters(case: Case) -> Any:
    shapes = nnx.to_pure_dict(nnx.state(abstract(case), nnx.Param))
    drawn = reference.random_params(shapes, np.random.default_rng(1))
    return jax.tree.map(lambda x: np.float32(case.size) * x, drawn)


def by_path(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x) for path, x in leaves}


def batch(T: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(T)
    return {name: rng.integers(0, V, (B, T)) for name in ("tokens", "targets")}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """All of them at once: importing torch takes longest."""
    asked, arrays = {}, {}
    for name, (case, T) in zip(NAMES, RUNS, strict=True):
        asked[name] = {"kind": "model", "config": case.theirs()}
        given = theirs(TABLES[case.variant], by_path(parameters(case)), case.layers) | batch(T)
        arrays |= {f"{name}/{part}": x for part, x in given.items()}
    return ask(asked, arrays, tmp_path_factory.mktemp("published"))


def compared(name: str, ours: Any, wanted: np.ndarray) -> None:
    assert np.shape(ours) == wanted.shape, name
    error = np.abs(np.asarray(ours) - wanted).max() / np.abs(wanted).max()
    assert error <= 5e-5, (name, error)


@pytest.mark.parametrize(("case", "T"), RUNS, ids=NAMES)
def test_a_published_shape_is_its_namesake(answers: dict[str, np.ndarray], case: Case, T: int) -> None:
    """Logits, loss, and the gradients of all weights."""
    found = {key.partition("/")[2]: x for key, x in answers.items() if key.startswith(f"{case.variant}, T={T}/")}
    graphdef = nnx.graphdef(abstract(case))
    loss = language_model(graphdef)
    given = {name: jnp.asarray(x) for name, x in batch(T).items()}
    given |= {
        "segment_ids": jnp.ones((B, T), int),
        "positions": jnp.arange(T)[None].repeat(B, 0),
        "weights": jnp.ones((B, T)),
    }

    def total(params: Any) -> tuple[jax.Array, jax.Array]:
        nats, count = loss(params, given, None)["loss"]
        return nats / count, nnx.merge(graphdef, params)(given["tokens"])

    with jax.default_matmul_precision("highest"):
        (value, logits), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(parameters(case))
    compared("logits", logits, found.pop("logits"))
    compared("loss", value, found.pop("loss"))
    ours = theirs(TABLES[case.variant], by_path(gradients), case.layers)
    assert ours.keys() == found.keys()
    for name, wanted in found.items():
        compared(name, ours[name], wanted)


def test_every_published_shape_is_compared() -> None:
    here = {name for name, one in vars(published).items() if callable(one) and one.__module__ == published.__name__}
    assert {case.variant for case in CASES} == {name for name in here if not name.startswith("_")} == TABLES.keys()
