"""The shapes of configs/encoder_decoder.py beside `transformers`, at small sizes and with the same weights: the same
logits, loss and gradients, with padding on both sides; the original Transformer is Marian's with ReLU."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import encoder_decoder
from launch.configs import load
from model.beam import Beam, search
from model.families.encoder_decoder import EncoderDecoderConfig, Pairs
from tests.model import reference
from tests.model.asking import MARKS, ask
from tests.model.peer_tables import PAIR_TABLES, theirs_of_pairs
from tests.model.test_published import by_path, compared
from train.experiment import make_model_config

pytestmark = MARKS
B, S, T, V = 3, 151, 37, 29  # beyond the last bucket of distances
LAYERS = {"encoder": 2, "decoder": 3}
LENGTHS = np.array([[S, 17, 1], [5, T, 20]])  # of the sources, and of what is written


class Case(NamedTuple):
    """A variant of configs/encoder_decoder.py, what the config.json of its namesake says beside sizes, and sizes."""

    variant: str
    config: dict[str, Any]
    width: int = 20
    head_width: int = 7
    changes: dict[str, Any] = {}
    size: float = 1.0  # of the weights; products that nothing scales make attention so sharp that float32 errs

    def ours(self) -> EncoderDecoderConfig:
        """The committed config, with small sizes, in float32."""
        sizes = {"num_layers": 3, "encoder_num_layers": 2, "width": self.width, "num_heads": 3, "mlp_width": 23}
        changes: dict[str, Any] = {f"model.{key}": size for key, size in sizes.items()} | self.changes
        changes |= {"model.head_width": self.head_width, "data.vocab_size": V, "data.length": S}
        config = load(f"encoder_decoder:{self.variant}", **changes)
        return make_model_config(config, V)  # type: ignore[return-value]

    def theirs(self) -> dict[str, Any]:
        """The published config, with small sizes."""
        if self.config["model_type"] == "t5":
            sizes = {"d_model": self.width, "d_kv": self.head_width, "d_ff": 23, "num_heads": 3}
            sizes |= {"num_layers": 2, "num_decoder_layers": 3}
        else:
            sizes = {"d_model": self.width, "max_position_embeddings": S}
            for side, layers in LAYERS.items():
                sizes |= {f"{side}_layers": layers, f"{side}_ffn_dim": 23, f"{side}_attention_heads": 3}
        return {"vocab_size": V, **sizes, **self.config}


# Marian has biases in attention, which the paper's has not.
_MARIAN = {"model_type": "marian", "activation_function": "relu", "scale_embedding": True, "pad_token_id": None}
_MARIAN |= {"forced_eos_token_id": None}
CASES = [
    Case("t5_small", {"model_type": "t5", "feed_forward_proj": "relu"}),
    Case(
        "t5_v1_1_small", {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, size=0.7
    ),
    Case("transformer_base", _MARIAN, 24, 8, {"model.use_bias": True, "model.norm": "layer(1e-5)"}),
]
NAMES = [case.variant for case in CASES]
BEAM, LIMIT, START, END = Beam(3, 1.3, "huggingface"), 12, 1, 2
SEARCH = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 1.3, "max_new_tokens": LIMIT}
SEARCH |= {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": 0}


def parameters(case: Case) -> Any:
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: case.ours().build(nnx.Rngs(0))), nnx.Param))
    drawn = reference.random_params(shapes, np.random.default_rng(1))
    return jax.tree.map(lambda x: np.float32(case.size) * x, drawn)


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    masks = [
        (np.arange(size)[None] < lengths[:, None]).astype(int) for size, lengths in zip((S, T), LENGTHS, strict=True)
    ]
    targets = np.where(masks[1], rng.integers(0, V, (B, T)), -100)
    sources, tokens = rng.integers(0, V, (B, S)), rng.integers(0, V, (B, T))
    return {"input_ids": sources, "attention_mask": masks[0], "decoder_input_ids": tokens, "targets": targets}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """All of them at once: importing torch takes longest."""
    asked, arrays = {}, {}
    for case in CASES:
        asked[case.variant] = {"kind": "pairs", "config": case.theirs()}
        given = theirs_of_pairs(PAIR_TABLES[case.variant], by_path(parameters(case)), LAYERS) | batch()
        arrays |= {f"{case.variant}/{part}": x for part, x in given.items()}
        # The same weights and sources, of which it writes.
        left_out = ("decoder_input_ids", "targets")
        arrays |= {f"beams of {case.variant}/{part}": x for part, x in given.items() if part not in left_out}
        asked[f"beams of {case.variant}"] = {"kind": "beams", "config": case.theirs(), "search": SEARCH}
    return ask(asked, arrays, tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_published_shape_is_its_namesake(answers: dict[str, np.ndarray], case: Case) -> None:
    """Logits, loss, and the gradients of all weights."""
    found = {key.partition("/")[2]: x for key, x in answers.items() if key.startswith(f"{case.variant}/")}
    graphdef, given = nnx.graphdef(nnx.eval_shape(lambda: case.ours().build(nnx.Rngs(0)))), batch()
    real_BT = given["targets"] >= 0
    pairs = Pairs(given["input_ids"], given["decoder_input_ids"], given["attention_mask"], real_BT.astype(int))

    def total(params: Any) -> tuple[jax.Array, jax.Array]:
        logits_BTV = nnx.merge(graphdef, params)(pairs)
        known_BT = jnp.take_along_axis(
            jax.nn.log_softmax(logits_BTV), jnp.where(real_BT, given["targets"], 0)[..., None], -1
        )
        return -jnp.sum(jnp.where(real_BT, known_BT[..., 0], 0)) / real_BT.sum(), logits_BTV

    with jax.default_matmul_precision("highest"):
        (value, logits), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(parameters(case))
    compared("logits", np.asarray(logits)[real_BT], found.pop("logits")[real_BT])
    compared("loss", value, found.pop("loss"))
    ours = theirs_of_pairs(PAIR_TABLES[case.variant], by_path(gradients), LAYERS)
    assert ours.keys() == found.keys()
    for name, wanted in found.items():
        if name.endswith("k_proj.bias"):  # a number that all of a query's scores get moves no weight
            assert np.abs(wanted).max() < 1e-12 < 1e-6 > np.abs(ours[name]).max()
        else:
            compared(name, ours[name], wanted)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_beam_search_is_its_namesakes(answers: dict[str, np.ndarray], case: Case) -> None:
    """All k hypotheses of each row and their scores, those that have not ended among them."""
    graphdef, given = nnx.graphdef(nnx.eval_shape(lambda: case.ours().build(nnx.Rngs(0)))), batch()

    @jax.jit
    def start(params: Any) -> Any:
        model = nnx.merge(graphdef, params)
        pairs = Pairs(given["input_ids"], given["decoder_input_ids"], given["attention_mask"])
        return model.init_cache(model.encode(pairs), pairs.source_segment_ids_BS, LIMIT)

    starts = np.full(B, START), np.zeros(B, np.int32)
    params = parameters(case)
    ours = search(graphdef, params, start(params), *starts, beam=BEAM, end=END, limit=LIMIT)
    tokens_NT, scores_N = (answers[f"beams of {case.variant}/{part}"] for part in ("tokens", "scores"))
    np.testing.assert_allclose(np.ravel(ours.score_BK), scores_N, rtol=1e-4)
    lengths = np.ravel(ours.length_BK)
    for tokens_T, theirs_T, length in zip(
        np.asarray(ours.tokens_BKT).reshape(-1, LIMIT), tokens_NT, lengths, strict=True
    ):
        assert tokens_T[:length].tolist() == theirs_T[:length].tolist()
        assert {*theirs_T[length:].tolist()} <= {0, END}
    np.testing.assert_array_equal(np.ravel(ours.finished_BK), [END in tokens_T for tokens_T in tokens_NT])


def test_every_kind_of_published_shape_is_compared() -> None:
    """Of those that differ in their sizes alone, the smallest; the others are trained here."""
    trained = "numbers", "dates", "denoising"
    kinds = {name.rpartition("_")[0] for name in encoder_decoder.VARIANTS if name not in trained}
    assert kinds == {case.variant.rpartition("_")[0] for case in CASES} == {"t5", "t5_v1_1", "transformer"}
    assert set(NAMES) == PAIR_TABLES.keys()
