from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.figure import Figure

from eval.attention_picture import LABELLED, attention_figure, draw, shortened, token_label
from eval.generation import generate
from launch.configs import load
from model import GPT, GPTConfig, UserError
from model.families.encoder_decoder import Pairs
from model.inspection import attention_weights
from train.data import ByteTokenizer
from train.experiment import make_model_config

L, H, LENGTH = 2, 3, 53
PROMPT = "def $f$(x):\n\té😀\x07"


@pytest.fixture(scope="module")
def model() -> GPT:
    config = GPTConfig(vocab_size=256, max_length=LENGTH, num_layers=L, width=30, num_heads=H, scale=7.0)
    return GPT(config, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def figure(model: GPT) -> Figure:
    return attention_figure(model, ByteTokenizer(), PROMPT)


def panels(figure: Figure) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_title()]


def test_one_panel_for_each_layer_and_head_shows_its_weights(model: GPT, figure: Figure) -> None:
    assert [axes.get_title() for axes in panels(figure)] == [f"layer {i}, head {j}" for i in range(L) for j in range(H)]
    tokens = [255, *PROMPT.encode()]
    weights_LHTS = np.asarray(attention_weights(model, tokens_BT=np.array([tokens]))["stack.attention"])[:, 0]
    for axes, weights_TS in zip(panels(figure), weights_LHTS.reshape(-1, *weights_LHTS.shape[2:]), strict=True):
        shown_TS = axes.images[0].get_array()
        np.testing.assert_array_equal(shown_TS.mask, np.triu(np.ones_like(weights_TS, bool), 1))
        np.testing.assert_allclose(shown_TS.filled(0), weights_TS, atol=1e-6)
        np.testing.assert_allclose(shown_TS.sum(1), 1, atol=1e-5)


def test_tokens_are_named_on_the_outer_axes(figure: Figure) -> None:
    labels = ["(start)", *"def·$f$(x):↵→", "c3", "a9", "f0", "9f", "98", "80", "<7>"]
    first, *_, last = panels(figure)
    assert [label.get_text() for label in first.get_yticklabels()] == labels
    assert [label.get_text() for label in last.get_xticklabels()] == labels
    assert "def·$f$(x):↵→é😀<7>" in figure.get_suptitle()


def test_is_a_png(figure: Figure, tmp_path: Path) -> None:
    figure.savefig(tmp_path / "attention.png", dpi=20)  # a missing glyph would warn
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_many_tokens_are_numbered() -> None:
    T = LABELLED + 1
    figure = draw(np.eye(T)[None, None], ["a"] * T, "a" * T)
    assert "a" not in {label.get_text() for label in panels(figure)[0].get_yticklabels()}


def test_weights_that_are_no_shares_are_shown_by_their_size() -> None:
    """Of the head that has them alone; the other is drawn as it is."""
    shares, others = np.tril(np.full((3, 3), 0.25)), np.tril([[-4.0] * 3, [1] * 3, [2] * 3])
    one, two = panels(draw(np.array([[shares, others]]), ["a"] * 3, "aaa"))
    assert (one.get_title(), two.get_title()) == ("layer 0, head 0", "layer 0, head 1: |w| / 4")
    np.testing.assert_array_equal(one.images[0].get_array().filled(0), shares)
    np.testing.assert_array_equal(two.images[0].get_array().filled(0), np.abs(others) / 4)


def test_labels() -> None:
    tokenizer = ByteTokenizer()
    assert [token_label(tokenizer, token) for token in (0x41, 0x20, 0xE4, 255)] == ["A", "·", "e4", "(start)"]
    assert shortened("中\u200b", 60) == "<4e2d><200b>"
    assert shortened("abcdefg", 5) == "abcd…"


def test_refusals(model: GPT) -> None:
    for prompt, sentence in (
        ("", "the prompt is empty"),
        ("a" * LENGTH, "53 tokens, and the model takes fewer than 53"),
    ):
        with pytest.raises(UserError, match=sentence):
            attention_figure(model, ByteTokenizer(), prompt)


def test_of_a_model_that_looks_ahead_all_is_shown() -> None:
    config = GPTConfig(vocab_size=256, max_length=LENGTH, num_layers=1, width=30, num_heads=H, mask="full")
    one, *_ = panels(attention_figure(GPT(config, rngs=nnx.Rngs(1)), ByteTokenizer(), "abc"))
    shown_TS = one.images[0].get_array()
    assert not np.ma.getmaskarray(shown_TS).any()
    assert shown_TS[0, -1] > 0


@pytest.mark.rest
@pytest.mark.parametrize("family", ["encoder_decoder", "recurrent_encoder_decoder"])
def test_of_pairs_it_shows_what_is_looked_at_of_the_source(family: str) -> None:
    tokenizer = ByteTokenizer().with_marks(["start"])
    keys = {"family": family, "task": "translation", "model.num_layers": 2, "model.width": 16, "data.length": 7}
    one = make_model_config(load("base", **keys), 257).build(nnx.Rngs(0))
    figure = attention_figure(one, tokenizer, "ab c")
    written = [tokenizer.marks["start"], *tokenizer.encode(generate(one, tokenizer, "ab c", temperature=0.0)[0])][:7]
    pairs = Pairs(jnp.array([[*b"ab c", 255]]), jnp.array([written]))
    wanted_LHTS = np.asarray(attention_weights(one, pairs=pairs)["decoder.cross"])[:, 0]
    shown = [np.ma.getdata(axes.images[0].get_array()) for axes in panels(figure)]
    np.testing.assert_allclose(np.array(shown), wanted_LHTS.reshape(-1, *wanted_LHTS.shape[2:]), atol=1e-6)
    across = [label.get_text() for label in panels(figure)[-1].get_xticklabels()]
    assert across == ["a", "b", "·", "c", "(end)"]
    assert panels(figure)[0].get_yticklabels()[0].get_text() == "(start)"


def test_without_attention_there_is_no_picture() -> None:
    one = make_model_config(load("base", family="recurrent", **{"model.width": 16}), 256).build(nnx.Rngs(0))
    with pytest.raises(
        UserError, match="the model has no attention, of which a picture could be made; leave --attention out."
    ):
        attention_figure(one, ByteTokenizer(), "a")
