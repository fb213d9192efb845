"""Public sets, by the real builders' feature specs, and records of ours in the form in which TFDS reads real ones."""

from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from model.errors import UserError
from train.data.examples import Corpus, Labelled, Pair, Question, Tagged, public_examples
from train.data.files import quiet

Record = dict[str, Any]
SPLITS = {"train": "train", "validation": "validation"}


SEVERAL = tfds.features.Sequence(tfds.features.ClassLabel(names=["joy", "fear", "awe"]))


def opened(kind: type, name: str, records: list[Record], folder, **given: Any) -> Corpus:
    with tfds.testing.mock_data(as_data_source_fn=lambda self, split, **_: records):
        found = public_examples(kind, name, folder, SPLITS, **given)
        list(found.splits["train"])
    return found


TWO = "a ß".encode(), b"b"
LABELS = {
    "glue/sst2": (["sentence"], ("negative", "positive")),
    "glue/cola": (["sentence"], ("unacceptable", "acceptable")),
    "glue/mrpc": (["sentence1", "sentence2"], ("not_equivalent", "equivalent")),
    "glue/rte": (["sentence1", "sentence2"], ("entailment", "not_entailment")),
    "glue/wnli": (["sentence1", "sentence2"], ("not_entailment", "entailment")),
    "glue/qqp": (["question1", "question2"], ("not_duplicate", "duplicate")),
    "glue/qnli": (["question", "sentence"], ("entailment", "not_entailment")),
    "glue/mnli": (["premise", "hypothesis"], ("entailment", "neutral", "contradiction")),
    "imdb_reviews": (["text"], ("neg", "pos")),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_have_the_names_that_the_builder_gives(name, tmp_path) -> None:
    features, names = LABELS[name]
    records = [dict(zip(features, TWO, strict=False)) | {"label": i % len(names), "idx": i} for i in range(6)]
    found = opened(Labelled, name, records, tmp_path)
    assert found.names == names
    second = ("b",) if len(features) == 2 else ()
    assert list(found.splits["train"]) == [Labelled("a ß", names[i % len(names)], *second) for i in range(6)]
    assert found.splits["validation"][-1] == found.splits["train"][5]


def test_numbers_tags_questions_and_pairs(tmp_path) -> None:
    record = {"sentence1": b"a", "sentence2": b"b", "label": np.float32(2.5), "idx": 0}
    assert list(opened(Labelled, "glue/stsb", [record], tmp_path, form="number").splits["train"]) == [
        Labelled("a", 2.5, "b")
    ]
    tags = {"tokens": [b"U.N.", b"in", b"New", b"York"], "ner": [3, 0, 5, 6], "pos": [0] * 4, "chunks": [0] * 4}
    found = opened(Tagged, "conll2003", [tags, {name: [] for name in tags}], tmp_path)
    assert found.names == ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
    assert list(found.splits["train"]) == [Tagged(("U.N.", "in", "New", "York"), ("B-ORG", "O", "B-LOC", "I-LOC"))]
    assert found.counted["examples of 'train' left out for a fault, such as number 1: it has no words"] == 1
    other = opened(Tagged, "conll2003", [tags], tmp_path, features=("tokens", "pos"), names=("O", *"abcdefgh"))
    assert other.splits["train"][0].tags == ("O",) * 4
    assert other.fingerprint != found.fingerprint
    asked = {"id": b"1", "title": b"t", "question": b"who?", "is_impossible": False}
    context = "ßß it is I, I".encode()  # starts count characters
    answered = asked | {"context": context, "answers": {"text": [b"I", b"I"], "answer_start": [9, 12]}}
    none = asked | {"context": context, "is_impossible": True, "answers": {"text": [], "answer_start": []}}
    for name in ("squad/v1.1", "squad/v2.0"):
        questions = opened(Question, name, [answered, none], tmp_path).splits["train"]
        assert [one.answers for one in questions] == [("I", "I"), ()]
        assert questions[0].starts == (9, 12)
    for name in ("wmt14_translate/de-en", "wmt16_translate/de-en", "wmt_t2t_translate/de-en"):
        pair = {"de": "Größe".encode(), "en": b"size"}
        assert list(opened(Pair, name, [pair], tmp_path).splits["train"]) == [Pair("Größe", "size")]
        turned = opened(Pair, name, [pair], tmp_path, features=("en", "de"))
        assert list(turned.splits["train"]) == [Pair("size", "Größe")]


STSB = {"sentence1": b"a", "sentence2": b"b", "idx": 0}
SST2 = {"sentence": b"a", "label": 0, "idx": 0}
IOB1 = {"tokens": [b"a", b"b"], "ner": [0, 2], "pos": [0, 0], "chunks": [0, 0]}
MISPLACED = {"question": b"q", "context": b"abc", "answers": {"text": [b"c"], "answer_start": [1]}}
BAD = [
    (
        Labelled,
        "glue/sst2",
        SST2 | {"label": -1},
        "example 0 of 'train' of glue/sst2/2.0.0 has the label -1, which is none ",
    ),
    (
        Labelled,
        "glue/sst2",
        SST2 | {"label": 2},
        "the label 2, which is none of negative, positive (test splits often ",
    ),
    (Labelled, "glue/stsb", STSB | {"label": np.float32("nan")}, "has the label nan, which is none of the numbers"),
    (
        Labelled,
        "glue/sst2",
        SST2 | {"sentence": b"\xff"},
        "the features sentence, label of glue/sst2/2.0.0 are not texts ",
    ),
    (Pair, "glue/sst2", SST2, "has the features idx, label, sentence, and the task takes two languages: "),
    (Tagged, "glue/sst2", SST2, "has the features idx, label, sentence, and the task takes tokens+ner: "),
    (
        Question,
        "squad/v1.1",
        MISPLACED,
        "3 of the 3 examples of 'train' of squad/v1.1/3.0.0 have faults, such as number 0: its ",
    ),
]


@pytest.mark.parametrize(("kind", "name", "record", "sentence"), BAD)
def test_bad_records_are_one_sentence(kind, name, record, sentence, tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        opened(kind, name, [record] * 3, tmp_path, form="number" if name == "glue/stsb" else "one")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "name", ["glue/sst2", "imdb_reviews", "conll2003", "wmt16_translate/de-en", "glue/mrpc", "squad/v1.1"]
)
def test_an_unprepared_set_is_refused_with_what_to_do(name, tmp_path) -> None:
    kind = {"c": Tagged, "s": Question, "w": Pair}.get(name[0], Labelled)
    with pytest.raises(UserError) as caught:
        public_examples(kind, name, tmp_path, SPLITS)
    sentence = str(caught.value)
    assert "is not prepared in" in sentence
    assert "download_and_prepare()" in sentence
    assert ("where TensorFlow is installed (it unpacks" in sentence) == (name not in ("glue/mrpc", "squad/v1.1"))
    assert ("import tensorflow_datasets.text, " in sentence) == (name.startswith(("glue", "conll")))
    assert ("import tensorflow_datasets.translate, " in sentence) == (name.startswith("wmt"))


class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Sets with the features of public ones, of which TFDS itself writes and reads the records."""

    VERSION = tfds.core.Version("1.0.0")
    text = tfds.features.Text()
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name) for name in ("conll", "squad", "wmt", "glue", "stsb", "moods")
    ]
    FEATURES: dict[str, Any] = {
        "conll": tfds.features.FeaturesDict(
            {
                "tokens": tfds.features.Sequence(text),
                "ner": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B-X", "I-X"])),
            }
        ),
        "squad": tfds.features.FeaturesDict(
            {
                "question": text,
                "context": text,
                "answers": tfds.features.Sequence({"text": text, "answer_start": np.int32}),
            }
        ),
        "wmt": tfds.features.Translation(("de", "en")),
        "glue": tfds.features.FeaturesDict({"sentence": text, "label": tfds.features.ClassLabel(names=["no", "yes"])}),
        "stsb": tfds.features.FeaturesDict({"sentence1": text, "sentence2": text, "label": np.float32}),
        "moods": tfds.features.FeaturesDict({"text": text, "label": SEVERAL}),
    }
    RECORDS: dict[str, list[Record]] = {
        "conll": [{"tokens": ["ß", "b"], "ner": ["B-X", "I-X"]}, {"tokens": [], "ner": []}],
        "squad": [
            {"question": "wo?", "context": "ß da", "answers": {"text": ["da"], "answer_start": [2]}},
            {"question": "wo?", "context": "ß da", "answers": {"text": [], "answer_start": []}},
        ],
        "wmt": [{"de": "Größe", "en": "size"}],
        "glue": [{"sentence": "ß", "label": "yes"}],
        "stsb": [{"sentence1": "ß", "sentence2": "b", "label": 2.5}],
        "moods": [{"text": "ß", "label": ["awe", "joy"]}, {"text": "b", "label": []}],
    }

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.FEATURES[self.builder_config.name])

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in SPLITS}

    def _generate_examples(self):
        yield from enumerate(self.RECORDS[self.builder_config.name])


WRITTEN = {
    "conll": (Tagged, [Tagged(("ß", "b"), ("B-X", "I-X"))]),
    "squad": (Question, [Question("wo?", "ß da", ("da",), (2,)), Question("wo?", "ß da")]),
    "wmt": (Pair, [Pair("Größe", "size")]),
    "glue": (Labelled, [Labelled("ß", "yes")]),
    "stsb": (Labelled, [Labelled("ß", 2.5, "b")]),
    "moods": (Labelled, [Labelled("ß", ("awe", "joy")), Labelled("b", ())]),
}
FORM = {"stsb": "number", "moods": "several"}


@pytest.mark.parametrize("name", WRITTEN)
def test_records_that_tfds_itself_wrote(name, tmp_path) -> None:
    with quiet():
        Prepared(config=name, data_dir=tmp_path, file_format="array_record").download_and_prepare()
    kind, expected = WRITTEN[name]
    form = FORM.get(name, "one")
    found = public_examples(kind, f"prepared/{name}", tmp_path, SPLITS, form=form)
    assert found.names == {"stsb": ("number",), "moods": ("joy", "fear", "awe")}.get(name, found.names)
    if kind is Labelled:
        other = "several" if form == "number" else "number"
        with pytest.raises(
            UserError, match=r"has .* and the task takes .*: change --config.data.name or --config.task"
        ):
            public_examples(kind, f"prepared/{name}", tmp_path, SPLITS, form=other)
    for split in SPLITS:
        assert list(found.splits[split]) == expected
        assert found.splits[split][-1] == expected[-1]
    assert (found.overlap().shared, found.overlap().validation) == (0, len(Prepared.RECORDS[name]))
    assert list(found.counted.values()) == ([1, 1] if name == "conll" else [])
    with pytest.raises(UserError, match="has no split 'dev', it has train, validation "):
        public_examples(kind, f"prepared/{name}", tmp_path, SPLITS | {"validation": "dev"}, form=form)
