"""What `transformers` and torch compute, for tests/model/test_peers.py, test_published*.py and recurrent/test_torch.py:
run by the Python of `.cache/oracle`, which lacks jax.

    python -m tests.model.peers QUESTIONS ANSWERS

Questions are {name: {"kind": ..., numbers}} in JSON beside arrays in QUESTIONS.npz; answers are arrays in ANSWERS.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

Arrays = dict[str, np.ndarray]


def frequencies(asked: dict[str, Any], arrays: Arrays) -> np.ndarray:
    """The frequencies of rotated pairs, and at last the gain."""
    config = LlamaConfig(
        hidden_size=asked["width"],
        num_attention_heads=asked["heads"],
        max_position_embeddings=asked["length"],
        rope_parameters=asked["rope"],
    )
    found, gain = ROPE_INIT_FUNCTIONS[asked["rope"]["rope_type"]](config, "cpu")
    return np.append(found.numpy(), gain)


def buckets(asked: dict[str, Any], arrays: Arrays) -> np.ndarray:
    """T5's bucket of each distance j - i."""
    both, number, most = (asked[key] for key in ("bidirectional", "buckets", "max_distance"))
    return T5Attention._relative_position_bucket(torch.tensor(arrays["distances"]), both, number, most).numpy()


def slopes(asked: dict[str, Any], arrays: Arrays) -> np.ndarray:
    """ALiBi's slope of each head, read off BLOOM's bias of the second of two keys."""
    return build_alibi_tensor(torch.ones(1, 2), asked["heads"], torch.float32)[:, 0, 1].numpy()


def model(asked: dict[str, Any], arrays: Arrays) -> Arrays:
    """The logits of a causal model of given weights, its loss, and the gradient of each weight, under its name.

    In float64, as far as it does not ask for float32 itself, so that what differs is the other's rounding.
    """
    inputs, targets = torch.tensor(arrays.pop("tokens")), arrays.pop("targets")
    made = built(AutoModelForCausalLM, asked, arrays)
    return _answer(made, made(inputs, use_cache=False).logits, targets)


def pairs(asked: dict[str, Any], arrays: Arrays) -> Arrays:
    """The same of an encoder-decoder, for sources where `mask` is 1, and targets that count where they are not -100."""
    inputs = {name: torch.tensor(arrays.pop(name)) for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    targets, made = arrays.pop("targets"), built(AutoModelForSeq2SeqLM, asked, arrays)
    return _answer(made, made(**inputs, use_cache=False).logits, targets)


def beams(asked: dict[str, Any], arrays: Arrays) -> Arrays:
    """The tokens behind the start, and the scores, of the k hypotheses that its beam search returns for each row."""
    inputs = {name: torch.tensor(arrays.pop(name)) for name in ("input_ids", "attention_mask")}
    made = built(AutoModelForSeq2SeqLM, asked, arrays)
    settings = {"early_stopping": True, "return_dict_in_generate": True, "output_scores": True}
    # Its cache has as many layers as the encoder.
    found = made.generate(**inputs, **asked["search"], **settings, do_sample=False, use_cache=False)
    return {"tokens": found.sequences[:, 1:].numpy(), "scores": found.sequences_scores.numpy()}


def built(kind: Any, asked: dict[str, Any], arrays: Arrays) -> torch.nn.Module:
    """The model of this kind and config with the given weights, in float64, with attention that can be seen."""
    settings = dict(asked["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    made = kind.from_config(config, attn_implementation="eager").eval()
    if settings.get("tie_word_embeddings") is False:  # which T5 reads as something else, and ties all the same
        made.lm_head.weight = torch.nn.Parameter(torch.empty_like(made.lm_head.weight))
    known = {name: torch.tensor(np.ascontiguousarray(x)) for name, x in arrays.items()}
    missing, unknown = made.load_state_dict(known, strict=False)
    assert not unknown, unknown
    # A tied head, and what is fixed and no parameter, are all that may be missing.
    assert {name for name, x in made.named_parameters() if x.requires_grad} & {*missing} == set(), missing
    return made.double()


def _answer(made: torch.nn.Module, logits: torch.Tensor, targets: np.ndarray) -> Arrays:
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    loss.backward()
    gradients = {name: x.grad.numpy() for name, x in made.named_parameters() if x.requires_grad}
    return {"logits": logits.detach().numpy(), "loss": loss.detach().numpy(), **gradients}


def recurrent(asked: dict[str, Any], arrays: Arrays) -> Arrays:
    """What an LSTM or GRU of torch gives for rows of some lengths, which it packs, the loss of targets by a linear
    readout, and the gradients of all, in float64; behind a row's end its states are 0.
    """
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[asked["cell"]]
    sizes = asked["width"], asked["hidden"], asked["layers"]
    made = kind(*sizes, batch_first=True, bidirectional=asked["both_ways"]).double()
    x, readout = (torch.tensor(arrays.pop(name)).double().requires_grad_() for name in ("x", "readout"))
    targets, lengths = (torch.tensor(arrays.pop(name)) for name in ("targets", "lengths"))
    made.load_state_dict({name: torch.tensor(np.ascontiguousarray(one)) for name, one in arrays.items()})
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    states, _ = torch.nn.utils.rnn.pad_packed_sequence(made(packed)[0], batch_first=True, total_length=x.shape[1])
    valid = torch.arange(x.shape[1])[None] < lengths[:, None]
    loss = torch.nn.functional.cross_entropy((states @ readout)[valid], targets[valid], reduction="sum")
    loss.backward()
    gradients = {name: one.grad.numpy() for name, one in (*made.named_parameters(), ("x", x), ("readout", readout))}
    return {"states": states.detach().numpy(), "loss": loss.detach().numpy(), **gradients}


def bert(asked: dict[str, Any], arrays: Arrays) -> Arrays:
    """The logits of one of BERT's classes, its loss, and the gradient of each weight, in float64."""
    config = transformers.BertConfig(**asked["config"], hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    made = getattr(transformers, asked["class"])._from_config(config, attn_implementation="eager").eval()
    given = {name: torch.tensor(arrays.pop(name)) for name in ("tokens", "types", "valid", "answers")}
    follows = {"next_sentence_label": torch.tensor(arrays.pop("follows"))} if "follows" in arrays else {}
    known = {name: torch.tensor(np.ascontiguousarray(x)) for name, x in arrays.items()}
    missing, unknown = made.load_state_dict(known, strict=False)
    assert not unknown, unknown
    assert {name for name, _ in made.named_parameters()} & {*missing} == set(), missing
    answers = given["answers"]
    problem = asked["config"].get("problem_type")
    labels = {"labels": answers.double() if problem and problem != "single_label_classification" else answers}
    if asked["class"] == "BertForQuestionAnswering":
        labels = {"start_positions": answers[:, 0], "end_positions": answers[:, 1]}
    inputs = {"input_ids": given["tokens"], "token_type_ids": given["types"], "attention_mask": given["valid"].long()}
    out = made.double()(**inputs, **labels, **follows)
    out.loss.backward()
    if "start_logits" in out:
        logits = {"logits": torch.stack([out.start_logits, out.end_logits], 1)}
    elif follows:
        logits = {"logits": out.prediction_logits, "follows": out.seq_relationship_logits}
    else:
        logits = {"logits": out.logits}
    found = {"loss": out.loss, **logits}
    gradients = {name: x.grad.numpy() for name, x in made.named_parameters()}
    return {name: x.detach().numpy() for name, x in found.items()} | gradients


Kinds = dict[str, Callable[[dict[str, Any], Arrays], np.ndarray | Arrays]]
KINDS: Kinds = {
    "frequencies": frequencies,
    "buckets": buckets,
    "slopes": slopes,
    "model": model,
    "recurrent": recurrent,
    "bert": bert,
    "pairs": pairs,
    "beams": beams,
}


def main(kinds: Kinds, questions: str, answers: str) -> None:
    """Answers every question."""
    torch.set_num_threads(1)
    with open(questions) as file:
        asked = json.load(file)
    with np.load(f"{questions}.npz") as stored:
        all_arrays = dict(stored)
    found = {}
    for name, one in asked.items():
        own = {key.removeprefix(f"{name}/"): x for key, x in all_arrays.items() if key.startswith(f"{name}/")}
        answer = kinds[one["kind"]](one, own)
        parts = answer if isinstance(answer, dict) else {"": answer}
        found |= {f"{name}/{part}".rstrip("/"): x for part, x in parts.items()}
    np.savez(answers, **found)


if __name__ == "__main__":
    main(KINDS, *sys.argv[1:])
