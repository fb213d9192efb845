import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from eval import generation, prompting
from eval.generation import Utf8Text, generate
from eval.sampling import Sampling
from model import GPT, GPTConfig, UserError
from model.attention import CORES
from tests.model.attention import decay
from train.data import ByteTokenizer, Tokenizer
from train.devices.mesh import AXES, make_mesh, make_rules
from train.sharding import placed

LENGTH = 37
SPELLING = {"a": [0], "b": [1], "é": [2, 3], "\n": [4], "x": [5]}
PROMPTS = ["abba", "é", "x\nababé\nbaab", "bb", "a"]


class Letters(Tokenizer):
    """Seven tokens, of which two are halves of a character and one is longer than a letter: ends come often."""

    def __init__(self) -> None:
        super().__init__([b"a", b"b", b"\xc3", b"\xa9", b"\n", b"x", b""], end=6, fingerprint="letters")

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        unknown = {letter for letter in "".join(texts) if letter not in SPELLING}
        if unknown:
            raise UserError(f"{unknown} is not in the vocabulary.")
        return [np.array([token for letter in text for token in SPELLING[letter]]) for text in texts]


MODELS: dict[str, dict[str, Any]] = {
    "states": {"core": "decay + dense", "mask": "causal"},
    "rope": {"num_kv_heads": 1, "mask": "causal & window(5)", "tied": False},
    "learned": {"position": "learned", "norm": "layer", "norm_place": "post", "use_bias": True, "edits": "qk_norm"},
}


@pytest.fixture(autouse=True)
def _decay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CORES, "decay", decay.CORE)


@functools.cache
def make(kind: str) -> GPT:
    config = GPTConfig(
        vocab_size=7, max_length=LENGTH, num_layers=2, width=30, num_heads=3, mlp_width=11, **MODELS[kind]
    )
    model = GPT(config, rngs=nnx.Rngs(18))
    # Far from uniform, so that a wrong token of context changes what is written.
    return nnx.merge(nnx.graphdef(model), jax.tree.map(lambda x: 1.5 * x, nnx.state(model)))


@functools.cache
def forward(kind: str) -> Any:
    return nnx.jit(make(kind))


def uncached(kind: str, prompts: Sequence[str], most: int, seed: int, sampling: Sampling) -> list[list[int]]:
    """What each prompt is continued with when the whole sequence is run for each token."""
    written = []
    for row, prompt in enumerate(prompts):
        tokens = [6, *Letters().encode(prompt)]
        first = len(tokens)
        while len(tokens) < first + most and (len(tokens) == first or tokens[-1] != 6):
            padded = np.array([tokens + [0] * (LENGTH - len(tokens))])
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), len(tokens))
            logits_BV = forward(kind)(padded)[:, len(tokens) - 1]
            tokens.append(int(sampling.draw(logits_BV, key[None])[0]))
        written.append(tokens[first:])
    return written


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param("rope", {"temperature": 0.0}, marks=pytest.mark.rest),
        pytest.param("rope", {"temperature": 1.3, "top_k": 5, "top_p": 0.95, "min_p": 0.05}, marks=pytest.mark.rest),
        ("learned", {"temperature": 1.3}),
        pytest.param("states", {"temperature": 1.3}, marks=pytest.mark.rest),
    ],
)
def test_cached_equals_the_full_forward(kind: str, settings: dict[str, Any]) -> None:
    expected = uncached(kind, PROMPTS, 19, 5, Sampling(**settings))
    found = generate(make(kind), Letters(), PROMPTS, max_new_tokens=19, seed=5, **settings)
    assert found == [Letters().decode(tokens) for tokens in expected]
    # Some rows come to their end, at different times, and some to the limit.
    ended = {len(tokens) for tokens in expected if tokens[-1] == 6}
    assert any(tokens[-1] != 6 for tokens in expected)
    assert len(ended) >= (2 if settings["temperature"] else 1)


@pytest.mark.parametrize("settings", [{"temperature": 1e-40}, {"temperature": 1.3, "top_p": 1e-40}], ids=str)
def test_the_smallest_temperature_and_mass_write_what_is_likeliest(settings: dict[str, Any]) -> None:
    write = functools.partial(generate, make("rope"), Letters(), PROMPTS, max_new_tokens=19, seed=5)
    assert write(**settings) == write(temperature=0.0)


@pytest.mark.rest
def test_other_prompts_change_nothing() -> None:
    write = functools.partial(generate, make("rope"), Letters(), max_new_tokens=19)
    together = write(PROMPTS[:2], temperature=1.3, seed=7)
    assert write(PROMPTS[0], temperature=1.3, seed=7) == together[:1]
    assert write([PROMPTS[0], "x" * 17], temperature=1.3, seed=7)[0] == together[0]
    assert write([PROMPTS[0], PROMPTS[0]], temperature=1.3, seed=7)[1] != together[0]  # a draw of its own
    assert write(PROMPTS[:2], temperature=1.3, seed=8) != together


def test_streams_what_it_returns() -> None:
    pieces: list[tuple[int, str]] = []
    settings: dict[str, Any] = {"max_new_tokens": 19, "temperature": 1.7, "seed": 5}
    texts = generate(make("learned"), Letters(), PROMPTS, stream=lambda *piece: pieces.append(piece), **settings)
    assert texts == generate(make("learned"), Letters(), PROMPTS, **settings)
    assert texts == ["".join(text for at, text in pieces if at == row) for row in range(len(PROMPTS))]
    assert len(pieces) > len(PROMPTS)
    assert all(text for _, text in pieces)


def test_a_character_is_shown_when_it_is_whole() -> None:
    shown: list[str] = []
    text = Utf8Text(shown.append)
    for data in (b"a\xe4", b"\xb8", b"\xad", b"", b"\xffb\xc3"):
        text.add(data)
    assert text.close() == "a中\ufffdb\ufffd"
    assert shown == ["a", "中", "\ufffdb", "\ufffd"]


def test_the_same_program_serves_other_prompts() -> None:
    write = functools.partial(generate, make("rope"), Letters(), temperature=0.0, max_new_tokens=19)
    write(PROMPTS, stream=lambda index, text: None)  # the loop is entered with arrays of the host, then of the device
    programs = generation._advance._cache_size()
    write(PROMPTS[::-1], seed=11)
    write(["ab", "b", "ba", "aaaa", "é"], stream=lambda index, text: None)
    assert generation._advance._cache_size() == programs


@pytest.mark.rest
@pytest.mark.parametrize("sizes", [(1, 8, 1, 1), (2, 1, 1, 4)])
def test_a_few_prompts_need_not_divide_the_mesh(sizes: tuple[int, ...]) -> None:
    write = functools.partial(generate, make("rope"), Letters(), PROMPTS[:3], temperature=0.0, max_new_tokens=19)
    expected = write()
    with placed(make_mesh(dict(zip(AXES, sizes, strict=True))), make_rules(1)):
        assert write() == expected


def test_as_much_as_the_model_takes() -> None:
    write = functools.partial(generate, make("learned"), Letters(), "ab" * 9, temperature=0.0)
    assert write(max_new_tokens=LENGTH - 18) == write()
    with pytest.raises(UserError, match=r"18 \+ 20 = 38 tokens, and the model takes 37; lower --max_new_tokens"):
        write(max_new_tokens=20)
    rooms = [prompting._room(*sizes) for sizes in ((18, None, 37), (18, None, 1009), (36, 1, 37), (5, 7, 37))]
    assert rooms == [19, 200, 1, 7]


@pytest.mark.parametrize(
    ("prompts", "settings", "sentence"),
    [
        ("", {}, r"the prompt is empty; .*--prompt"),
        (["a", ""], {}, r"the prompt is empty; .*--prompt"),
        ([], {}, r"no prompt; give --prompt"),
        ("abz", {}, r"'z'.* not in the vocabulary"),
        ("a" * LENGTH, {}, r"37 tokens, and the model takes fewer than 37; shorten --prompt"),
        ("a", {"max_new_tokens": 0}, r"--max_new_tokens=0 must be at least 1"),
        ("a", {"temperature": -1.0}, r"--temperature=-1.0 must be"),
    ],
)
def test_refusals(prompts: str | list[str], settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        generate(make("rope"), Letters(), prompts, **settings)


def test_refuses_a_model_that_cannot_write() -> None:
    with pytest.raises(UserError, match="256 tokens and the model 7"):
        generate(make("rope"), ByteTokenizer(), "a")
    sizes: dict[str, Any] = {"vocab_size": 7, "max_length": 5, "num_layers": 1, "width": 6, "num_heads": 1}
    # The last one looks ahead only in its second block.
    for mask in ("full", "window(3)", "causal | (~prefix(3) & chunked(2))"):
        model = nnx.eval_shape(lambda mask=mask: GPT(GPTConfig(**sizes, mask=mask), rngs=nnx.Rngs(0)))
        with pytest.raises(UserError, match=r"looks ahead.*'causal'"):
            generate(model, Letters(), "a")
