"""What models of pairs write of sources, and what a beam finds for both kinds of models, through the two calls."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.generation import generate, generate_by_beam
from launch.configs import load
from model import UserError
from model.beam import Beam, search
from model.families.encoder_decoder import Pairs
from model.families.table import FAMILIES
from train.data.tokenizers import ByteTokenizer
from train.experiment import make_model_config
from train.tasks.table import TASKS

T = 19
CASES = [
    (task, name)
    for task in ("translation", "language_model")
    for name, kind in FAMILIES.items()
    if TASKS[task].HEAD in kind.HEADS
]
PROMPTS = ["abc", "d", "é fgh"]


@functools.cache
def written(task: str, family: str) -> tuple[Any, Any]:
    tokenizer = ByteTokenizer().with_marks(TASKS[task].MARKS)
    keys = {"family": family, "task": task, "model.num_layers": 2, "model.width": 16, "data.length": T}
    return make_model_config(load("base", **keys), tokenizer.vocab_size).build(nnx.Rngs(1)), tokenizer


@pytest.mark.rest
@pytest.mark.parametrize(("task", "family"), CASES)
def test_a_beam_is_that_of_each_prompt_alone(task: str, family: str) -> None:
    """Beside the search itself, from a cache that this fills token by token."""
    model, tokenizer = written(task, family)
    graphdef, params = nnx.split(model)
    beam = Beam(3, 0.6, "wu")
    found = generate_by_beam(model, tokenizer, PROMPTS, beam, max_new_tokens=7)
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = tokenizer.encode(prompt)
        if task == "translation":
            sources_1S = jnp.asarray([[*ids, tokenizer.end]])
            cache = model.init_cache(model.encode(Pairs(sources_1S, sources_1S)), None, 7)
            newest, place = tokenizer.marks["start"], 0
        else:
            newest, place, cache = ids[-1], len(ids), model.init_cache(1, T)
            for position, token in enumerate([tokenizer.end, *ids[:-1]]):
                _, cache = model.decode(jnp.asarray([[token]]), jnp.asarray([[position]]), cache)
        given = jnp.asarray([newest]), jnp.asarray([place])
        one = search(graphdef, params, cache, *given, beam=beam, end=tokenizer.end, limit=7)
        tokens = np.asarray(one.tokens_BKT)[0, 0, : int(one.length_BK[0, 0])].tolist()
        assert text == b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8", "replace")


@pytest.mark.rest
@pytest.mark.parametrize("family", [family for task, family in CASES if task == "translation"])
def test_what_is_drawn_of_a_source_is_what_it_draws_alone(family: str) -> None:
    model, tokenizer = written("translation", family)
    for settings in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3}):
        assert (
            generate(model, tokenizer, PROMPTS, **settings)[0] == generate(model, tokenizer, PROMPTS[0], **settings)[0]
        )
    shown = dict[int, str]()
    whole = generate(
        model, tokenizer, PROMPTS, stream=lambda index, text: shown.update({index: shown.get(index, "") + text})
    )
    assert whole == [shown.get(index, "") for index in range(3)]
    assert max(map(len, whole)) <= T


def test_what_cannot_be_written_is_refused() -> None:
    model, tokenizer = written("translation", "encoder_decoder")
    for prompt, settings, sentence in (
        ("x" * T, {}, f"the prompt has {T} tokens, and the model takes fewer than {T}; shorten --prompt."),
        ("x", {"max_new_tokens": T + 1}, f"make 0 + {T + 1} = {T + 1} tokens, and the model takes {T}"),
        ("", {}, "the prompt is empty"),
    ):
        with pytest.raises(UserError) as refused:
            generate(model, tokenizer, prompt, **settings)
        assert sentence in str(refused.value)
