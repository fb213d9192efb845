"""BERT beside `transformers`: each head, with the same weights, gives the same logits, loss and gradients, with padding
and two types of segments, and so do classes, several labels and numbers of the same head; and what it may be told
wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.families.bert import BERT, BERTConfig
from tests.model import reference
from tests.model.asking import MARKS, ask
from tests.model.peer_tables import BERT_TABLES, theirs
from train.tasks.classification import Classification
from train.tasks.regression import Regression
from train.tasks.several_labels import SeveralLabels

B, T, V, LABELS, LAYERS = 3, 23, 37, 5, 2
SIZES: dict[str, Any] = {"num_layers": LAYERS, "width": 22, "num_heads": 2, "mlp_width": 31, "types": 2}
LENGTHS = np.array([23, 17, 2])  # of the rows, of which the rest is padding
# By the names of heads, and what else a task makes of one of them.
KINDS = {
    "token": "BertForMaskedLM",
    "pair": "BertForPreTraining",
    "class": "BertForSequenceClassification",
    "tag": "BertForTokenClassification",
    "span": "BertForQuestionAnswering",
    "several": "BertForSequenceClassification",
    "number": "BertForSequenceClassification",
}
HEADS = {name: "class" if name in ("several", "number") else name for name in KINDS}
TASKS: dict[str, Classification] = {"class": Classification(), "several": SeveralLabels(), "number": Regression()}
PROBLEMS = {"class": "single_label_classification", "several": "multi_label_classification"}


def labels(name: str) -> int:
    return {"span": 2, "number": 1}.get(name, LABELS)


def config(name: str, **changes: Any) -> BERTConfig:
    return BERTConfig(**SIZES | changes, vocab_size=V, max_length=29, head=HEADS[name], labels=labels(name))


def params(head: str) -> Any:
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: config(head).build(nnx.Rngs(0))), nnx.Param))
    return jax.tree.map(np.float32, reference.random_params(shapes, np.random.default_rng(1)))


def batch(head: str) -> dict[str, np.ndarray]:
    """The answers are -100 where none is asked for; of `pair`, those to the tokens."""
    rng = np.random.default_rng(7)
    # Their softmax over places has no mask: theirs is compared without padding.
    valid_BT = np.arange(T) < LENGTHS[:, None] if head != "span" else np.ones((B, T), bool)
    found = {"tokens": rng.integers(0, V, (B, T)), "types": rng.integers(0, 2, (B, T)), "valid": valid_BT}
    asked_BT = valid_BT & (rng.random((B, T)) < 0.5)
    asked_BT[:, 1] = True
    on_tokens = rng.integers(0, LABELS if head == "tag" else V, (B, T))
    rows: dict[str, np.ndarray] = {"class": rng.integers(0, LABELS, B), "span": rng.integers(0, 2, (B, 2))}
    rows |= {"several": rng.integers(0, 2, (B, LABELS)), "number": rng.normal(2.5, 1, B)}
    found["answers"] = rows[head] if head in rows else np.where(asked_BT, on_tokens, -100)
    return found | ({"follows": rng.integers(0, 2, B)} if head == "pair" else {})


def cross_entropy(logits: jax.Array, answers: jax.Array) -> jax.Array:
    """The mean over those that are asked for."""
    asked = answers >= 0
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(asked, answers, 0)[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(asked, nats, 0)) / jnp.sum(asked)


def ours(head: str) -> tuple[Any, Any]:
    """((loss, logits), gradients)."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: config(head).build(nnx.Rngs(0))))
    given = {name: jnp.asarray(x) for name, x in batch(head).items()}
    named = {"tokens_BT": given["tokens"], "types_BT": given["types"], "valid_BT": given["valid"]}

    def total(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        model = nnx.merge(graphdef, params)
        if head == "pair":
            x_BTD, follows_B2 = model.both(**named)
            logits_BTV = model.readout()(x_BTD)
            loss = cross_entropy(logits_BTV, given["answers"]) + cross_entropy(follows_B2, given["follows"])
            return loss, {"logits": logits_BTV, "follows": follows_B2}
        logits = model(**named)
        if head in TASKS:
            return jnp.mean(TASKS[head].judged(logits, given["answers"])["loss"]), {"logits": logits}
        if head == "span":  # over the places of a row
            logits = logits.swapaxes(1, 2)
            return cross_entropy(logits, given["answers"]), {"logits": logits}
        return cross_entropy(logits, given["answers"]), {"logits": logits}

    with jax.default_matmul_precision("highest"):
        return jax.jit(jax.value_and_grad(total, has_aux=True))(params(head))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """All of them at once: importing torch takes longest."""
    asked, arrays = {}, {}
    sizes = {"hidden_size": 22, "intermediate_size": 31, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    for head, kind in KINDS.items():
        asked[head] = {"kind": "bert", "class": kind}
        asked[head]["config"] = {
            **sizes,
            "vocab_size": V,
            "max_position_embeddings": 29,
            "num_labels": labels(head),
        }
        if head in TASKS:
            asked[head]["config"]["problem_type"] = PROBLEMS.get(head, "regression")
        asked[head]["config"]["pad_token_id"] = None  # whose row of the embedding gets no gradient
        given = theirs(BERT_TABLES[HEADS[head]], by_path(params(head)), LAYERS) | batch(head)
        arrays |= {f"{head}/{part}": x for part, x in given.items()}
    return ask(asked, arrays, tmp_path_factory.mktemp("bert"))


def by_path(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x) for path, x in leaves}


def compared(name: str, ours: Any, wanted: np.ndarray) -> None:
    assert np.shape(ours) == wanted.shape, name
    error = np.abs(np.asarray(ours) - wanted).max() / np.abs(wanted).max()
    assert error <= 5e-5, (name, error)


class TestBeside:
    pytestmark = MARKS

    @pytest.mark.parametrize("head", KINDS)
    def test_each_head_is_its_namesake(self, answers: dict[str, np.ndarray], head: str) -> None:
        """Logits where there is no padding, loss, and the gradients of all weights."""
        found = {key.partition("/")[2]: x for key, x in answers.items() if key.startswith(f"{head}/")}
        (loss, logits), gradients = ours(head)
        compared("loss", loss, found.pop("loss"))
        for name, x in logits.items():
            wanted, valid_BT = found.pop(name), batch(head)["valid"]
            if name == "logits" and head in ("token", "pair", "tag"):
                x, wanted = np.asarray(x)[valid_BT], wanted[valid_BT]
            elif head == "span":
                x, wanted = np.asarray(x).swapaxes(1, 2)[valid_BT], wanted.swapaxes(1, 2)[valid_BT]
            compared(name, x, wanted)
        ours_ = theirs(BERT_TABLES[HEADS[head]], by_path(gradients), LAYERS)
        assert ours_.keys() == found.keys()
        for name, wanted in found.items():
            if np.abs(wanted).max() < 1e-12:  # what adds the same to all that a softmax is over, as a key's bias does
                assert np.abs(ours_[name]).max() < 1e-6, name
            else:
                compared(name, ours_[name], wanted)


def test_every_head_is_compared() -> None:
    assert set(HEADS.values()) == set(BERTConfig.HEADS) == BERT_TABLES.keys()


@pytest.mark.rest
def test_the_mean_of_a_row_is_that_of_its_tokens() -> None:
    """As of each row by itself, without its padding: the pooler and the answer of the mean, in NumPy."""
    model = BERT(config("class", pool="mean"), rngs=nnx.Rngs(0))
    nnx.update(model, nnx.State(params("class")))
    given = batch("class")
    named = {"types_BT": given["types"], "valid_BT": given["valid"]}
    found = np.asarray(model(given["tokens"], **named))
    kernel_DD, bias_D = (np.asarray(x[...], np.float64) for x in (model.pooler.kernel, model.pooler.bias))
    out_DC, out_C = (np.asarray(x[...], np.float64) for x in (model.answer.kernel, model.answer.bias))
    for row, length in enumerate(LENGTHS):
        alone = {"types_BT": given["types"][row : row + 1, :length]}
        mean_D = np.asarray(model.vectors(given["tokens"][row : row + 1, :length], **alone), np.float64)[0].mean(axis=0)
        wanted_C = np.tanh(mean_D @ kernel_DD + bias_D) @ out_DC + out_C
        np.testing.assert_allclose(found[row], wanted_C, rtol=1e-4, atol=1e-5)
    nothing = np.zeros((B, T), bool)
    assert np.isfinite(model(given["tokens"], types_BT=given["types"], valid_BT=nothing)).all()


@pytest.mark.parametrize(("head", "pool"), [*((head, "first") for head in BERTConfig.HEADS), ("class", "mean")])
def test_padding_and_other_types_reach_nothing(head: str, pool: str) -> None:
    """What stands at padding changes no answer, NaN in its gradients neither; another type of a token does."""
    model = BERT(config(head, pool=pool), rngs=nnx.Rngs(0))
    given = batch(head)
    answer = jax.jit(lambda tokens, types: model(tokens, types_BT=types, valid_BT=given["valid"]))
    first = np.asarray(answer(given["tokens"], given["types"]))
    other = np.where(given["valid"], given["tokens"], 3)
    kept = given["valid"] if first.ndim == 3 else np.ones(B, bool)
    np.testing.assert_array_equal(np.asarray(answer(other, given["types"]))[kept], first[kept])
    turned = np.where(given["valid"] & (np.arange(T) == 0), 1 - given["types"], given["types"])
    assert not np.allclose(np.asarray(answer(given["tokens"], turned))[kept], first[kept])
    assert np.isnan(np.asarray(answer(given["tokens"], np.where(np.arange(T) == 0, 2, given["types"])))[kept]).any()
