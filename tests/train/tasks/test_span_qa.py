"""Answers in a text: which places are allowed, what is cut, loss and the best answer beside plain Python, mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.metrics import scores
from eval.scored import Spans
from launch import evaluate, train
from model import UserError
from model.families.bert import BERT, BERTConfig
from tests.tiny import SIZES, call, words
from train.data import ByteTokenizer
from train.data.examples import Answer, Corpus, Question
from train.data.examples.opened import ExampleData
from train.data.examples.questions import asked_of, varied
from train.tasks.span_qa import NEVER, SpanQA, SpanRows, best_spans, of_places

TOKENIZER = ByteTokenizer(["start", "separator"])
START, SEP = TOKENIZER.marks["start"], TOKENIZER.marks["separator"]


def asked(context: str, answer: str, question: str = "q") -> Question:
    return Question(question, context, (answer,), (context.index(answer),))


def rows_of(examples: list[Question], length: int = 23, train: list[Question] | None = None) -> SpanRows:
    corpus: Corpus[Question] = Corpus({"train": train or examples, "validation": examples}, "f")
    return SpanRows(ExampleData(corpus, TOKENIZER, length), "validation")


EXAMPLES = [
    asked(" größe = ß €", "ß €"),
    asked("one two", "one"),  # the first word of the context, and the last one
    asked("one two", "two"),
    asked("a b c", "b c", "long question" + " " * 25_000 + "of a lot of words"),
    asked("x" * 18 + " far away", "far"),  # of which the row holds one letter
    Question("q", "no answer"),
]


def test_only_the_context_is_allowed_and_holds_the_answer() -> None:
    rows = rows_of(EXAMPLES)
    found = rows.rows(range(7))
    room = 23 - 3
    for number, one in enumerate(EXAMPLES):
        row = {name: x[number] for name, x in found.items()}
        question, context = ("".join(text.split()).encode() for text in (one.question, one.context))
        question = question[: room - len(context)] if len(question) > len(context) else question
        context = context[: room - len(question)]
        tokens = [START, *question, SEP, *context, SEP]
        assert row["tokens"].tolist() == tokens + [0] * (23 - len(tokens))
        first = len(question) + 2
        assert np.flatnonzero(row["allowed"]).tolist() == [0, *range(first, first + len(context))]
        assert row["types"][row["valid"]].tolist() == [0] * first + [1] * (len(tokens) - first)
        assert (row["weights"], row["cut"]) == ((0, 1) if number == 4 else (1, 0))
        if one.answers and number != 4:
            start, stop = row["labels"]
            assert bytes(row["tokens"][start : stop + 1].tolist()) == "".join(one.answers[0].split()).encode()
        else:
            assert row["labels"].tolist() == [0, 0]
    assert not any(x[6].any() for name, x in found.items())
    assert rows.told() == "6 examples, of which 2 have more than --config.data.length=23 tokens and are cut, " + (
        "1 of them before their answer ends"
    )
    assert rows_of(EXAMPLES[:3]).told() == "3 examples"
    # An answer that the row does not hold is never the place of `start`, even where that may be one.
    right = [Answer(one.answers[0], one.starts[0]) if one.answers else Answer("") for one in EXAMPLES]
    told = rows.predicted(found["labels"])
    assert [told[number] for number in (0, 1, 2, 3, 5)] == [right[number] for number in (0, 1, 2, 3, 5)]


def test_where_each_question_has_an_answer_none_is_not_allowed() -> None:
    found = rows_of(EXAMPLES, train=EXAMPLES[:2]).rows(range(6))
    assert not found["allowed"][:, 0].any()
    assert (found["weights"][5], found["cut"][5]) == (0, 1)  # one that cannot be told, and counts as wrong


def test_a_validation_without_answers_is_refused_for_what_it_is() -> None:
    def measured(validation: list[Question]) -> Any:
        corpus: Corpus[Question] = Corpus({"train": EXAMPLES[:3], "validation": validation}, "f")
        return SpanQA().measured(ExampleData(corpus, TOKENIZER, 23))

    with pytest.raises(UserError, match="none of the 1 questions of validation has an answer, and each one of train"):
        measured(EXAMPLES[5:])
    with pytest.raises(UserError, match="none of the 2 answers of validation is within the --config.data.length=23"):
        measured(EXAMPLES[4:])


def test_the_first_answer_that_a_row_holds_is_learned() -> None:
    context = "x" * 30 + " ab cd"
    one = Question("q", "cd " + context, ("ab", "cd"), (34, 0))
    found = rows_of([one]).rows([0])
    assert found["labels"].tolist() == [[3, 4]]


def test_training_asks_anew_and_validation_does_not() -> None:
    questions = asked_of("def f(a, größe: int = (1 + 2), *, b='x', c = None):")
    more = [one for name in "uvwxyz" for one in asked_of(f"def g({name}{name}=1, {name}=2):")]
    splits = {"train": questions, "validation": questions}
    corpus: Corpus[Question] = Corpus(splits, "f", varied=varied([*questions, *more]))
    rows = SpanRows(ExampleData(corpus, TOKENIZER, 120), "train")
    plain, draws = rows.rows(range(3)), np.arange(3, dtype=np.uint64)
    np.testing.assert_array_equal(rows.rows(range(3), draws)["tokens"], rows.rows(range(3), draws)["tokens"])
    seen = set[bytes]()
    for seed in range(7):
        found = rows.rows(range(3), draws + np.uint64(3 * seed))
        seen.add(found["tokens"].tobytes())
        for number in range(3):
            texts = []
            for row in (plain, found):
                start, stop = row["labels"][number]
                texts.append(row["tokens"][number, start : stop + 1].tolist())
            assert texts[0] == texts[1]
    assert len(seen) == 7
    np.testing.assert_array_equal(rows.rows(range(3))["tokens"], plain["tokens"])


def test_the_best_answer_is_that_of_every_span_tried() -> None:
    rng = np.random.default_rng(3)
    B, T = 40, 13
    logits_BT2 = rng.integers(-3, 4, (B, T, 2)).astype(np.float32)  # with many equal sums
    context_B2 = np.sort(rng.integers(1, T + 1, (B, 2)), axis=1)
    for longest, threshold, none in [
        (1, 0, True),
        (3, 0, True),
        (3, -2, True),
        (3, 4, True),
        (5, 0, False),
        (99, 0, False),
    ]:
        allowed_BT = (np.arange(T) >= context_B2[:, :1] - 1) & (np.arange(T) < context_B2[:, 1:]) & (np.arange(T) > 0)
        allowed_BT[:, 1] |= ~allowed_BT.any(axis=1)
        inside_BT = allowed_BT.copy()
        allowed_BT[:, 0] = none
        found_B2 = best_spans(jnp.where(allowed_BT[..., None], logits_BT2, NEVER), longest, threshold)
        for row in range(B):
            best, where = -np.inf, (-1, -1)
            for start in range(T):
                for end in range(start, min(T, start + longest)):
                    total = logits_BT2[row, start, 0] + logits_BT2[row, end, 1]
                    if inside_BT[row, start] and inside_BT[row, end] and total > best:
                        best, where = total, (start, end)
            if none and logits_BT2[row, 0].sum() - best > threshold:
                where = (0, 0)
            assert tuple(found_B2[row].tolist()) == where, (row, longest, threshold, none)


def test_the_loss_is_that_of_both_ends_among_the_allowed_places() -> None:
    rng = np.random.default_rng(5)
    logits_BT2, allowed_BT = rng.standard_normal((7, 11, 2)), rng.random((7, 11)) < 0.6
    places_B2 = rng.integers(0, 11, (7, 2))
    np.put_along_axis(allowed_BT, places_B2, True, axis=1)
    nll_B, mean_B = np.zeros(7), np.zeros(7)
    for row in range(7):
        for end in (0, 1):
            some = logits_BT2[row, allowed_BT[row], end]
            log_p = some - np.log(np.exp(some).sum())
            nll_B[row] -= log_p[allowed_BT[row, : places_B2[row, end]].sum()]
            mean_B[row] -= log_p.mean()
    given, places = jnp.where(allowed_BT[..., None], logits_BT2, NEVER).astype(jnp.float32), jnp.asarray(places_B2)
    found = of_places(given, places, 0.3)
    np.testing.assert_allclose(found["nll"], nll_B, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], 0.7 * nll_B + 0.3 * mean_B, rtol=1e-5)
    np.testing.assert_array_equal(of_places(given, places)["loss"], found["nll"])
    nothing = of_places(jnp.full_like(given, NEVER), places, 0.3)
    assert all(np.isfinite(x).all() for x in nothing.values())  # of a row of padding, which weighs nothing


def test_sums_and_scores_are_those_of_plain_python() -> None:
    config = BERTConfig(
        vocab_size=258, max_length=23, head="span", labels=0, num_layers=1, width=6, num_heads=1, types=2
    )
    rows, task = rows_of(EXAMPLES), SpanQA(longest=4)
    both = [nnx.split(BERT(config, rngs=nnx.Rngs(seed))) for seed in (0, 1)]
    graphdef, params_N = both[0][0], jax.tree.map(lambda *x: jnp.stack([3 * one for one in x]), both[0][1], both[1][1])
    sums = jax.jit(jax.vmap(task.sums(graphdef), (0, None)))
    found = dict(Spans(sums, rows, 4)(params_N))  # the last batch has two rows of padding
    batch = rows.rows(range(6))
    given = {f"{name}_BT": batch[name] for name in ("tokens", "types", "valid")}
    logits = jax.jit(lambda params: nnx.merge(graphdef, params)(**given))
    for seed in range(2):
        logits_BT2 = np.asarray(logits(jax.tree.map(lambda x, seed=seed: x[seed], params_N)), np.float64)
        nats, predicted = [], []
        for number, logits_T2 in enumerate(logits_BT2):
            allowed = np.flatnonzero(batch["allowed"][number])
            log_p_T2 = logits_T2 - np.log(np.exp(logits_T2[allowed]).sum(axis=0))
            if number != 4:
                start, end = batch["labels"][number]
                nats.append(-log_p_T2[start, 0] - log_p_T2[end, 1])
            spans = [(a, b) for a in allowed[1:] for b in allowed[1:] if a <= b < a + 4] + [(0, 0)]
            predicted.append(max(spans, key=lambda span: logits_T2[span[0], 0] + logits_T2[span[1], 1]))
        answers = rows.predicted(np.array(predicted))
        assert found["val/loss"][seed] == pytest.approx(np.mean(nats), rel=1e-5)
        assert {name: found[f"val/{name}"][seed] for name in scores(answers, EXAMPLES)} == scores(answers, EXAMPLES)
        assert found["val/cut"][seed] == 1 / 6
    assert set(Spans.NAMES) <= set(found)


GOOD = {"question": "which?", "context": "x=1 y=2 z=3", "answers": ["1"], "starts": [2]}


def own(folder: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A run on a file of one's own, which has the same lines in both splits."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(text)
    keys = {"family": "bert", "task": "span_qa", "data.path": f"{folder}/*.jsonl", "data.dir": f"{folder}/data"}
    return SIZES | keys | {"data.length": 24, "data.batch_size": 6, "model.types": 2, "train.prompt": ""}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (GOOD | {"starts": [0]}, "train.jsonl:2: its answer '1' does not stand at 0, where 'x' stands: mend or remove"),
        (GOOD | {"starts": [99]}, "train.jsonl:2: its answer '1' at 99 is outside of the 11 characters"),
        ({"question": "q", "text": "c"}, "train.jsonl:2 has the columns question, text, and those of the task are"),
    ],
)
def test_a_bad_line_is_told(tmp_path: Path, line: dict[str, Any], sentence: str) -> None:
    outcome = call(train.main, words(tmp_path / "run", own(tmp_path, [GOOD, line])))
    assert outcome.status == 2
    assert sentence in outcome.err
    assert not (tmp_path / "run/checkpoints").exists()


def test_rows_that_hold_no_answer_are_refused() -> None:
    of = {"context": "a b c d e f g", "question": "which?"}
    corpus: Corpus[Question] = Corpus({name: [asked(answer="g", **of)] for name in ("train", "validation")}, "f")
    with pytest.raises(UserError, match="none of the 1 answers of validation is within the --config.data.length=13"):
        SpanQA().measured(ExampleData(corpus, TOKENIZER, 13))
    assert len(SpanQA().measured(ExampleData(corpus, TOKENIZER, 16))) == 1


@pytest.mark.parametrize(("key", "value"), [("longest", 0), ("threshold", float("inf"))])
def test_keys_out_of_their_range_are_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--config.objective.{key}={value} must be"):
        SpanQA(**{key: value})


@pytest.mark.rest
@pytest.mark.parametrize("changes", [{}, {"model.dtype": "bfloat16"}], ids=str)
def test_a_run_learns_answers(tmp_path: Path, changes: dict[str, str]) -> None:
    """Of 40 questions one has an answer that is cut, and a quarter of the others have none: all are told apart."""
    lines: list[dict[str, Any]] = [
        {"question": "?", "context": "x" * (n % 7) + f"={n % 5}" + "x" * (n % 3), "answers": [f"{n % 5}"]}
        if n % 4
        else {"question": "?", "context": "x" * (2 + n % 7), "answers": []}
        for n in range(40)
    ]
    lines[1]["context"] = "x" * 30 + "=1"
    lines = [line | {"starts": [line["context"].index(one) for one in line["answers"]]} for line in lines]
    keys = own(tmp_path, lines) | {"train.steps": 60, "train.evaluate_every": 60, "model.norm_place": "pre"} | changes
    argv = words(tmp_path / "run", keys | {"optimizer.learning_rate": 0.02, "model.dropout": 0.0}, "--allow_overlap")
    outcome = call(train.main, argv)
    assert outcome.status == 0, outcome.err
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last = logged[-1]
    assert last["val/cut"] == 1 / 40
    assert 0 < np.mean([one["train/cut"] for one in logged if "train/cut" in one]) < 0.1
    assert 0.9 < last["val/exact_match"] <= 39 / 40
    assert last["val/squad_f1_unanswered"] == 1.0
    told = call(evaluate.main, [f"--workdir={tmp_path}/run"])
    assert "40 examples, of which 1 have more than --config.data.length=24 tokens and are cut, 1 of them" in told.out
    assert re.search(rf"this model +{last['val/exact_match']:.4f}", told.out), told.out
    assert "commonest_answer" in told.out
    (file,) = (tmp_path / "run").glob("predictions-*.jsonl")
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [n for n, line in enumerate(written) if not line["right"]] == [1]
    assert written[2]["predicted"] == {"text": "2", "start": 3}
