"""Where text comes from: the standard library, TFDS by name, prepared folders, one's own files, and what is refused."""

import errno
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from configs.base import get_config
from model.errors import UserError
from train.data import open_data
from train.data.files import quiet
from train.data.overlap import ranges_overlap
from train.data.owntext import OwnText, _split_of
from train.data.sources import TfdsSource
from train.data.stdlib import PythonStdlib, fingerprint, source_files, split_of, stdlib_builder


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What a user has prepared elsewhere: TFDS does not know its name here."""

    VERSION = tfds.core.Version("3.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="en")]

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("train", 23), "validation": self._generate_examples("validation", 5)}

    def _generate_examples(self, split, count):
        for i in range(count):
            yield i, {"text": f"{split} {i}: Grüße", "label": i}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    with quiet():
        Tiny(config="en", data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def config_of(folder: Path, **values: object) -> ConfigDict:
    config = get_config().data
    config.update({"dir": str(folder), "tokenizer": "bytes", "length": 7, **values})
    return config


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


STDLIB = {
    **{f"{letter}/m{i}.py": f"{letter} = {i}\n" for letter in "abc" for i in range(19)},
    **{f"encodings/cp{i}.py": f"table = {i}\n" for i in range(97)},
    "latin.py": "# coding: latin-1\nname = 'ß'\r\n".encode("latin-1"),
    "broken.py": b"a = 1\nb = 2\nc = '\xff'\n",
    "broken_early.py": b"a = '\xff'\n",
    "unknown.py": b"# coding: no-such-codec\n",
    "a/data.txt": "no source",
}
LEFT_OUT = [
    "test/t.py",
    "a/tests/t.py",
    "idlelib/i.py",
    "site-packages/s.py",
    "config-3.11/c.py",
    "_sysconfigdata_x.py",
]


def test_stdlib_reads_what_belongs_as_python_would(tmp_path) -> None:
    files = dict(source_files(write(tmp_path, {**STDLIB, **dict.fromkeys(LEFT_OUT, "left_out = 1\n")})))
    assert set(files) == {name for name in STDLIB if name.endswith(".py")} - {
        "broken.py",
        "broken_early.py",
        "unknown.py",
    }
    assert files["latin.py"] == "# coding: latin-1\nname = 'ß'\n"
    assert list(files) == sorted(files)


def test_stdlib_splits_by_path_alone(tmp_path) -> None:
    assert {split_of(f"encodings/cp{i}.py") for i in range(97)} == {"train"}
    splits = [split_of(f"m{i}.py") for i in range(10_000)]
    assert 900 < splits.count("validation") < 1100
    assert 425 < splits.count("test") < 575
    assert (split_of("shutil.py"), split_of("argparse.py")) == ("validation", "train")  # never to change


def test_stdlib_is_prepared_once_per_content(tmp_path) -> None:
    source = write(tmp_path / "lib", STDLIB)
    builder = stdlib_builder(tmp_path / "data", source)
    texts = {
        split: dict(zip(_paths(builder, split), TfdsSource(builder, "text").documents(split), strict=True))
        for split in ("train", "validation", "test")
    }
    for split, files in texts.items():
        assert files == {name: text for name, text in source_files(source) if split_of(name) == split}
        assert files
    before = {file: os.stat(file).st_mtime_ns for file in builder.data_path.iterdir()}
    again = stdlib_builder(tmp_path / "data", source)
    assert {file: os.stat(file).st_mtime_ns for file in again.data_path.iterdir()} == before
    elsewhere = stdlib_builder(tmp_path / "other", write(tmp_path / "copy", STDLIB))
    for split in texts:
        here, there = (TfdsSource(b, "text").fingerprint(split) for b in (builder, elsewhere))
        assert here == there
    write(source, {"a/m1.py": "a = 2\n"})
    assert stdlib_builder(tmp_path / "data", source).data_path != builder.data_path


def _paths(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
    rows = builder.as_data_source(split=split)
    return [rows[i]["path"].decode() for i in range(len(rows))]


def test_the_fingerprint_sees_names_and_borders(tmp_path) -> None:
    contents = [{"a.py": "x", "b.py": ""}, {"a.py": "xb.py"}, {"a.py": "x", "c.py": ""}, {"a.py": "", "b.py": "x"}]
    found = {fingerprint(write(tmp_path / str(i), files)) for i, files in enumerate(contents)}
    assert len(found) == len(contents)


def test_a_prepared_folder_is_found_by_name_and_by_path(prepared, tmp_path) -> None:
    names = ["tiny", "tiny/en", "tiny/en:3.1.0", "tiny/en/3.1.0", str(prepared / "tiny/en/3.1.0")]
    opened = [open_data(config_of(prepared, name=name)) for name in names]
    assert len({data.fingerprint for data in opened}) == 1
    documents = list(opened[0].documents("train"))
    assert sorted(documents) == sorted(f"train {i}: Grüße" for i in range(23))
    text, offsets = opened[0].text("train"), opened[0].byte_offsets("train")
    assert [text[a:b].decode() for a, b in zip(offsets, offsets[1:], strict=False)] == documents
    windows = opened[0].windows("train")
    assert (windows.num_bytes, windows.num_tokens) == (len(text), len(text) + 23)


def test_parts_of_splits_and_their_fingerprints(prepared) -> None:
    whole = open_data(config_of(prepared, name="tiny/en"))
    part = open_data(config_of(prepared, name="tiny/en", train_split="train[:10]"))
    assert len(list(part.documents("train"))) == 10
    assert part.fingerprint != whole.fingerprint


@pytest.mark.parametrize(("name", "feature"), [("lm1b", "text"), ("pg19", "book_text")])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_tfds_name_goes_the_same_way(name, feature, tokenizer, tmp_path) -> None:
    with quiet(), tfds.testing.mock_data(num_examples=11):
        data = open_data(config_of(tmp_path, name=name, feature=feature, tokenizer=tokenizer, vocab_size=263))
        windows = data.windows("train")
        assert data.tokenizer.vocab_size == {"bytes": 256, "bpe": 263}[tokenizer]
        ids = [i for k in range(len(windows)) for i in windows[k]["tokens"].tolist()]
        assert data.tokenizer.decode(ids).encode() == data.text("train")


def test_own_files_are_split_by_path(tmp_path) -> None:
    files = {f"{i % 3}/n{i}.txt": f"text {i}\r\n" for i in range(41)}
    write(tmp_path, {**files, "0/readme.md": "no"})
    own = OwnText(f"{tmp_path}/**/*.txt")
    assert own.rule == "by file"
    train, validation = (list(own.documents(split)) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(files.values())
    assert 0 < len(validation) < len(train)
    moved = OwnText(f"{write(tmp_path / 'moved', files)}/*/*.txt")
    assert moved.fingerprint("train") == own.fingerprint("train") != own.fingerprint("validation")
    before = own.fingerprint("train")
    write(tmp_path, {"0/n0.txt": "changed"})
    assert OwnText(f"{tmp_path}/**/*.txt").fingerprint("train") != before
    with pytest.raises(UserError, match="0/n0.txt was changed while it was read"):
        list(own.documents("train"))


def test_few_own_files_are_split_by_position(tmp_path) -> None:
    write(tmp_path, {"a.txt": "ä" * 60, "b.txt": "b" * 40})
    own = OwnText(f"{tmp_path}/?.txt")
    assert own.rule == "by position"
    for blank in ({"blank2.txt": ""}, {"blank2.txt": "", "blank16.txt": " \n"}):  # they alone go to validation by file
        assert {_split_of(name) for name in blank} == {"validation"}
        write(tmp_path / "blank", {"a.txt": "ä" * 60, "b.txt": "b" * 40, **blank})
        assert OwnText(f"{tmp_path}/blank/*").rule == "by position"
        assert len(list(OwnText(f"{tmp_path}/blank/*").documents("train"))) == 2
    assert list(own.documents("train")) == ["ä" * 60, "b" * 30]
    assert list(own.documents("validation")) == ["b" * 10]
    data = open_data(config_of(tmp_path, path=f"{tmp_path}/?.txt"))
    assert data.text("validation") == b"b" * 10
    assert data.windows("validation").num_bytes == 10


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"name": "no_such"},
            "--config.data.name='no_such' is not prepared in .*: prepare it with .*download_and_prepare.*--config.data",
        ),
        ({"name": "lm1b"}, "'lm1b/1.1.0' is not prepared in .*download_and_prepare"),
        ({"name": "imdb_reviews/no_such"}, "'imdb_reviews/no_such' is not prepared .*BuilderConfig no_such not found"),
        ({"name": "/no/such"}, "--config.data.name=/no/such: that folder holds no prepared data set "),
        ({"feature": "txt"}, "no feature 'txt', it has label, text: change --config.data.feature"),
        ({"feature": "label"}, "'label' of tiny/en/3.1.0 is no UTF-8 text .*--config.data.feature"),
        ({"train_split": "trian"}, "no split 'trian', it has train, validation .*--config.data.train_split"),
        ({"validation_split": "test"}, "no split 'test', .*--config.data.validation_split"),
        ({"train_split": "train[:x]"}, "the split 'train.:x.' of tiny.* cannot be read .*--config.data.train_split"),
        ({"length": 0}, "--config.data.length=0 must be at least 1 "),
        ({"batch_size": 0}, "--config.data.batch_size=0 must be at least 1 "),
        ({"tokenizer": "words"}, "--config.data.tokenizer='words' is not one of: bpe, bytes."),
        ({"tokenizer": "bpe", "vocab_size": 256}, "--config.data.vocab_size=256 must be at least 257 "),
        ({"dir": "gs://bucket/data"}, "--config.data.dir='gs://bucket/data' is no folder "),
        ({"dir": "/dev/null/data"}, "/dev/null/data cannot be written .*--config.data.dir"),
        ({"path": "/no/such/*.txt"}, "--config.data.path='/no/such/.\\.txt' matches no file: give files "),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_sentence(prepared, values, sentence) -> None:
    config = config_of(prepared, name="tiny/en")
    config.update(values)
    with quiet(), pytest.raises(UserError, match=sentence) as caught:
        open_data(config)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("values", [{"name": "no_such"}, {"path": "/no/such"}, {"validation_split": "test"}], ids=str)
def test_what_is_refused_makes_no_folder(prepared, values, tmp_path) -> None:
    config = config_of(prepared, name=str(prepared / "tiny/en/3.1.0"), dir=f"{tmp_path}/new/data")
    config.update(values)
    with pytest.raises(UserError):
        open_data(config)
    assert not list(tmp_path.iterdir())


def test_too_little_and_unreadable_text_is_refused(tmp_path) -> None:
    write(tmp_path, {"a.txt": "abc" * 10, "empty.txt": "", "bad.txt": b"ab\xff"})
    short = open_data(config_of(tmp_path, path=f"{tmp_path}/a.txt"))
    assert len(short.windows("train")) == 4
    with pytest.raises(UserError, match=r"'validation' holds 4 tokens, .* --config.data.length=7: lower it"):
        short.windows("validation")
    with pytest.raises(UserError, match="holds 0 tokens"):
        open_data(config_of(tmp_path, path=f"{tmp_path}/empty.txt")).windows("train")
    with pytest.raises(UserError, match="bad.txt is not UTF-8 at byte 2: convert it, or change --config.data.path"):
        open_data(config_of(tmp_path, path=f"{tmp_path}/*.txt"))
    with pytest.raises(UserError, match="--config.data.validation_split='test' is not one of: train, validation"):
        open_data(config_of(tmp_path, path=f"{tmp_path}/a.txt", validation_split="test"))


def test_records_without_random_access_are_refused(prepared, tmp_path) -> None:
    folder = tmp_path / "tiny" / "en" / "3.1.0"
    folder.mkdir(parents=True)
    for file in (prepared / "tiny/en/3.1.0").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with quiet(), pytest.raises(UserError, match="stored as tfrecord, which has no random access: prepare it with"):
        open_data(config_of(tmp_path, name="tiny/en"))


# Part of a split of 23 examples, in the terms of TFDS; how many of the second are in the first, and in the first twice.
OVERLAPS = [
    ("train", "validation", 0, 0),
    ("train", "train", 23, 0),
    ("train", "train[50%:]", 11, 0),
    ("train[:90%]", "train[85%:]", 1, 0),
    ("train[:17]", "train[17:]", 0, 0),
    ("train[:17]", "train[13:19]", 4, 0),
    ("all", "validation", 5, 0),
    ("train+validation", "validation[2:]", 3, 0),
    ("train[:7]+train[11:]", "train[5:13]", 4, 0),
    ("train[:7]+train[5:11]", "train[11:]", 0, 2),
    ("train+train", "validation", 0, 23),
]


@pytest.mark.parametrize(("train", "validation", "shared", "repeated"), OVERLAPS)
def test_splits_that_overlap_are_refused_or_told(prepared, train, validation, shared, repeated, caplog) -> None:
    config = config_of(prepared, name="tiny/en", train_split=train, validation_split=validation)
    if shared:
        with pytest.raises(UserError, match=f"^{shared} of the .* documents of the validation .*--allow_overlap"):
            open_data(config)
    caplog.clear()
    data = open_data(config, allow_overlap=True)
    documents = {split: list(data.documents(split)) for split in ("train", "validation")}
    known = set(documents["train"])  # no text of this data set is another's
    assert sum(text in known for text in documents["validation"]) == shared
    assert len(documents["train"]) - len(known) == repeated
    described = data.described()
    assert described["overlap"] == {"documents": shared, "of": len(documents["validation"])}
    assert described["repeated"] == repeated
    assert [record.name for record in caplog.records] == ["heed"] * (bool(shared) + bool(repeated))


def test_ranges_overlap_as_sets_do() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        starts = rng.integers(0, 19, (2, 3))
        ranges = [
            [
                (str(file), int(a), int(a + n))
                for file, a, n in zip(rng.integers(0, 2, 3), row, rng.integers(0, 7, 3), strict=True)
            ]
            for row in starts
        ]
        train, validation = ([(file, i) for file, a, b in some for i in range(a, b)] for some in ranges)
        found = ranges_overlap(*ranges)
        assert found.shared == sum(example in set(train) for example in validation)
        assert (found.validation, found.repeated) == (len(validation), len(train) - len(set(train)))


def damaged(raw: bytes) -> dict[str, bytes | None]:
    middle = raw.index(b"train 11")
    flipped = raw[:middle] + bytes([raw[middle] ^ 255]) + raw[middle + 1 :]
    return {"cut": raw[: len(raw) // 2], "empty": b"", "zero": bytes(len(raw)), "flipped": flipped, "missing": None}


@pytest.mark.parametrize("kind", ["cut", "empty", "zero", "flipped", "missing"])
def test_a_damaged_shard_is_named(prepared, kind, tmp_path) -> None:
    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    (shard,) = (tmp_path / "tiny/en/3.1.0").glob("tiny-train.array_record*")
    raw = damaged(shard.read_bytes())[kind]
    shard.unlink()
    if raw is not None:
        shard.write_bytes(raw)
    sentence = (
        f"{shard} is missing or damaged at example .* of 'train' .*: copy it anew, or remove .*/3.1.0 and prepare"
    )
    with pytest.raises(UserError, match=sentence) as caught:
        open_data(config_of(tmp_path, name="tiny/en")).windows("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_words_about_a_data_set_are_named(prepared, file, tmp_path) -> None:
    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    path = tmp_path / "tiny/en/3.1.0" / file
    for raw in (path.read_bytes()[:99], b"", b"\xff\xfe\0"):
        path.write_bytes(raw)
        with pytest.raises(
            UserError, match=r"tiny/en/3.1.0 is damaged .*: copy dataset_info.json .*--config.data.name"
        ):
            open_data(config_of(tmp_path, name=str(path.parent)))


@pytest.mark.parametrize("file", ["tokens.raw", "offsets.npy", "bpe.json"])
def test_what_we_kept_is_made_anew_where_it_is_damaged(prepared, file, tmp_path, caplog) -> None:
    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    config = config_of(tmp_path, name="tiny/en", tokenizer="bpe", vocab_size=263)
    whole = open_data(config)
    tokens = whole.windows("train").rows(range(5))
    (path,) = (tmp_path / "heed").glob("bpe-*.json" if file == "bpe.json" else f"tokens-*/{file}")
    good = path.read_bytes()
    for raw in (good[:-1], good[:37], b""):
        path.write_bytes(raw)
        caplog.clear()
        again = open_data(config)
        np.testing.assert_equal(again.windows("train").rows(range(5)), tokens)
        assert path.read_bytes() == good
        (told,) = caplog.records
        assert re.search("was damaged, is kept as broken-.*, and made anew.", told.getMessage())
    path.unlink()
    np.testing.assert_equal(open_data(config).windows("train").rows(range(5)), tokens)


@pytest.mark.parametrize("file", ["tokens.raw", "offsets.npy", "bpe-263"])
def test_a_full_disk_under_the_data_is_one_sentence(prepared, file, tmp_path, monkeypatch) -> None:
    """The system's own error, for the one file that a link makes lie where there is no space."""
    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    config = config_of(tmp_path, name="tiny/en", tokenizer="bpe", vocab_size=263)
    opened = io.open

    def full(path: object, *arguments: object, **more: object) -> object:
        return opened("/dev/full" if file in str(path) and "w" in arguments[0] else path, *arguments, **more)

    with monkeypatch.context() as patch:
        for place in ("builtins.open", "io.open"):
            patch.setattr(place, full)
        with pytest.raises(UserError, match="^--config.data.dir: the disk under .* is full"):
            open_data(config).windows("train")
    assert len(open_data(config).windows("train")) > 3


def test_a_full_disk_under_the_library_is_one_sentence(tmp_path, monkeypatch) -> None:
    """As ArrayRecord says it."""

    def full(*_: object, **__: object) -> None:
        raise RuntimeError(f"UNKNOWN: {os.strerror(errno.ENOSPC)}; Error writing")

    monkeypatch.setattr(PythonStdlib, "download_and_prepare", full)
    with pytest.raises(UserError, match=f"^--config.data.dir: the disk under {tmp_path} is full"):
        stdlib_builder(tmp_path, write(tmp_path / "lib", STDLIB))
