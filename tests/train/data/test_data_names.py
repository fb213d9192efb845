"""One's own files: every name works or gets its sentence, and no file is read twice, whatever links lead to it."""

import os
import re
import socket
from pathlib import Path

import pytest

from model.errors import UserError
from tests.train.data.test_data_sources import config_of, write
from train.data import open_data
from train.data.finding import find_files
from train.data.owntext import OwnText, _split_of

MANY = {f"{i % 3}/n{i}.txt": f"text {i}\n" for i in range(41)}


def names(pattern: str) -> list[str]:
    return list(find_files(pattern)[0])


def test_fingerprints_of_plain_folders_never_change(tmp_path) -> None:
    """Those of the first release; whoever changes them stops every run on one's own text."""
    write(tmp_path, MANY | {"0/é 1.txt": "ß"})
    by_file, by_position = OwnText(f"{tmp_path}/**/*.txt"), OwnText(f"{tmp_path}/0/n0.txt")
    assert (by_file.rule, by_position.rule) == ("by file", "by position")
    assert by_file.fingerprint("train") == "518dbb699794b7d70e77256b60c0c26f33007952e5d74f3004874f82833acdcf"
    assert by_file.fingerprint("validation") == "ea6dd49a9cd00c78757badbb75310f829a739fc282481689f2aa837da035dbfd"
    assert by_position.fingerprint("train") == "91be97b76ef6419a4f117187efa825e768664a9bc71f43972a6b2a06417e3e39"


# The pattern below the folder, and the names that it finds among these.
FILES = [
    "a.txt",
    "b c.txt",
    "a1.txt",
    "a[1].txt",
    "x/a.txt",
    "x/y/b.txt",
    "x[1]/d.txt",
    ".h.txt",
    ".g/a.txt",
    "~/e.txt",
]
ALL = ["a.txt", "a1.txt", "a[1].txt", "b c.txt", "x/a.txt", "x/y/b.txt", "x[1]/d.txt", "~/e.txt"]
PATTERNS = {
    "*.txt": ["a.txt", "a1.txt", "a[1].txt", "b c.txt"],
    "a[1].txt": ["a[1].txt"],  # as it is written, where it exists
    "a[0-9].txt": ["a1.txt"],
    "a[[]1].txt": ["a[1].txt"],
    "x[1]/*": ["d.txt"],
    "x[1]": ["d.txt"],
    "b c.txt": ["b c.txt"],
    "**/*.txt": ALL,
    "**": ALL,
    "": ALL,
    "x": ["a.txt", "y/b.txt"],
    "x/": ["a.txt", "y/b.txt"],
    "**/**/b.txt": ["x/y/b.txt"],
    "*/*.txt": ["x/a.txt", "x[1]/d.txt", "~/e.txt"],
    ".*": [".h.txt"],
    ".h.txt": [".h.txt"],
    "~/*": ["e.txt"],
    "x/../a.txt": ["a.txt"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("relative", [False, True])
def test_a_pattern_names_files(pattern: str, relative: bool, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "with [brackets] and spaces~"
    write(folder, dict.fromkeys(FILES, "text"))
    monkeypatch.chdir(folder.parent if relative else "/")
    top = folder.name if relative else str(folder)
    assert names(f"{top}/{pattern}") == PATTERNS[pattern]


def test_the_home_folder_is_meant_only_at_the_beginning(tmp_path, monkeypatch) -> None:
    write(tmp_path, {"a.txt": "home"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/*.txt") == ["a.txt"]
    with pytest.raises(UserError, match="data.path='~nobody_here/.' matches no file"):
        find_files("~nobody_here/*")
    for key in ("dir", "name"):
        with pytest.raises(UserError, match=f"~nobody_here.*--config.data.{key}|--config.data.{key}=~nobody_here"):
            open_data(config_of(tmp_path, **{key: "~nobody_here/x" if key == "name" else "/dev/null/~nobody_here"}))


def test_names_that_are_not_utf8_work(tmp_path) -> None:
    write(tmp_path, MANY)
    (tmp_path / os.fsdecode(b"\xff\xe9.txt")).write_text("latin")
    data = open_data(config_of(tmp_path / "data", path=f"{tmp_path}/**/*.txt"))
    assert b"latin" in data.text("train") + data.text("validation")
    assert len(data.windows("train")) > 3


def test_no_file_is_read_twice_through_links(tmp_path) -> None:
    """A link to a folder, to a file, to the folder above, and two that make 2^40 paths of each name."""
    plain = OwnText(f"{write(tmp_path / 'plain', MANY)}/**/*.txt")
    linked = write(tmp_path / "linked", MANY)
    (linked / "A latest").symlink_to("2", target_is_directory=True)
    (linked / "A.txt").symlink_to("0/n0.txt")
    (linked / "1/up").symlink_to("..", target_is_directory=True)
    (linked / "1/here").symlink_to(".", target_is_directory=True)
    for pattern in ("**/*.txt", "**", "*/*.txt"):
        own = OwnText(f"{linked}/{pattern}")
        assert [own.fingerprint(split) for split in ("train", "validation")] == [
            plain.fingerprint(split) for split in ("train", "validation")
        ]
    assert names(f"{linked}/A*/*.txt") == [f"A latest/n{i}.txt" for i in sorted(range(2, 41, 3), key=str)]


def test_a_folder_elsewhere_is_read_through_its_link(tmp_path) -> None:
    write(tmp_path, {"elsewhere/deep/a.txt": "a", "texts/b.txt": "b"})
    (tmp_path / "texts/more").symlink_to("../elsewhere", target_is_directory=True)
    assert names(f"{tmp_path}/texts/**/*.txt") == ["b.txt", "more/deep/a.txt"]


def test_links_are_told_of(tmp_path, caplog) -> None:
    write(tmp_path, MANY)
    (tmp_path / "latest").symlink_to("2", target_is_directory=True)
    OwnText(f"{tmp_path}/**/*.txt")
    assert [record.getMessage() for record in caplog.records] == [
        f"--config.data.path: links that lead to what is read anyway: 1, such as {tmp_path}/latest."
    ]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)  # a socket's path is short
        made.bind(path.name)


SPOILED = {
    "a pipe": (pipe, "--config.data.path=.* names .*bad.txt, which is no file of text, "),
    "a socket": (bound, "--config.data.path=.* names .*bad.txt, which is no file of text, "),
    "a link to nothing": (lambda path: path.symlink_to("absent"), "bad.txt, which is no file of text"),
    "a link to itself": (lambda path: path.symlink_to("bad.txt"), "bad.txt, which is no file of text"),
    "UTF-16": (lambda path: path.write_text("text", encoding="utf-16"), "bad.txt is UTF-16 or UTF-32, not UTF-8: conv"),
    "Latin-1": (lambda path: path.write_bytes(b"ab\xff"), "bad.txt is not UTF-8 at byte 2: convert it"),
    "unreadable": (lambda path: path.symlink_to("/proc/self/mem"), r"bad.txt cannot be read \(Input/output error\): "),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_what_is_no_text_gets_its_sentence(spoiled: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, sentence = SPOILED[spoiled]
    write(tmp_path, {"a.txt": "text"})
    make(tmp_path / "bad.txt")
    for pattern in ("*.txt", "bad.txt", "**"):
        with pytest.raises(UserError, match=sentence):
            OwnText(f"{tmp_path}/{pattern}")
    assert names(f"{tmp_path}/a*") == ["a.txt"]  # what is not asked for is no hindrance


def test_a_folder_that_cannot_be_listed_gets_its_sentence(tmp_path, monkeypatch) -> None:
    """Root may list any folder, so that the system's refusal is played."""
    write(tmp_path, {"a/b.txt": "text"})
    listed = os.listdir

    def refuse(folder: str) -> list[str]:
        if folder.endswith("/a"):
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match=r"the folder .*/a cannot be read \(Permission denied\): .*--config.data.path"):
        find_files(f"{tmp_path}/**")


def test_where_nothing_matches_it_is_said_where(tmp_path, monkeypatch) -> None:
    write(tmp_path, {"a/b.txt": "text"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--config.data.path='c.txt' matches no file in {tmp_path}: give files"):
        find_files("c.txt")
    with pytest.raises(UserError, match=r"data.path='\*' matches no file in .*, but folders: write /\*\* behind it"):
        find_files("*")


def test_byte_order_marks_are_no_text(tmp_path) -> None:
    write(tmp_path, {"a.txt": "äöü\n" * 9, "b.txt": "\ufeff" + "äöü\n" * 9, "c.txt": "\ufeff"})
    plain = open_data(config_of(tmp_path, path=f"{tmp_path}/a.txt"))
    marked = open_data(config_of(tmp_path, path=f"{tmp_path}/b.txt"))
    assert (marked.text("train"), marked.text("validation")) == (plain.text("train"), plain.text("validation"))
    assert list(OwnText(f"{tmp_path}/c.txt").documents("train")) == []


def test_copies_on_both_sides_are_refused_or_told(tmp_path, caplog) -> None:
    """A copy, a hard link and an empty file twice: the empty ones share nothing."""
    write(tmp_path, MANY)
    own = OwnText(f"{tmp_path}/**/*.txt")
    assert (own.overlap("train", "validation").shared, own.overlap("train", "validation").repeated) == (0, 0)
    asked = sorted(name for name in MANY if MANY[name] in set(own.documents("validation")))
    learned = sorted(MANY.keys() - {*asked})
    write(tmp_path, {asked[0]: MANY[learned[0]], asked[1]: "", learned[1]: "", learned[3]: MANY[learned[2]]})
    (tmp_path / learned[4]).unlink()
    (tmp_path / learned[4]).hardlink_to(tmp_path / learned[2])
    config = config_of(tmp_path / "data", path=f"{tmp_path}/**/*.txt")
    count = rf"1 of the {len(asked)} documents of the validation split are also in the train split"
    with pytest.raises(UserError, match=f"{count} .*{asked[0]} is .*{learned[0]}.*--config.data.path.*--allow_overlap"):
        open_data(config)
    caplog.clear()
    data = open_data(config, allow_overlap=True)
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "2 documents of the train split repeat the text of another."
    assert told[1].startswith("1 of the ")
    assert data.described() == {
        "fingerprint": data.fingerprint,
        "overlap": {
            "documents": 1,
            "of": len(asked),
            "characters": len(MANY[learned[0]]),
            "of_characters": len(data.text("validation")),
        },
        "repeated": 2,
    }


def test_copies_on_both_sides_of_a_position_are_found(tmp_path) -> None:
    """The cut goes through the last file, or stands before it."""
    own = OwnText(f"{write(tmp_path / 'cut', {'a.txt': 'x' * 50, 'b.txt': 'y' * 50})}/*")
    assert own.rule == "by position"
    assert own.overlap("train", "validation").shared == 0
    own = OwnText(f"{write(tmp_path / 'twins', {'a.txt': 'x' * 50, 'b.txt': 'x' * 50})}/*")
    assert (own.overlap("train", "validation").shared, own.overlap("train", "validation").repeated) == (1, 1)
    own = OwnText(f"{write(tmp_path / 'last', {'a.txt': 'x' * 9, 'b.txt': 'y' * 81, 'c.txt': 'x' * 9})}/*")
    assert list(own.documents("validation")) == ["y", "x" * 9]
    assert own.overlap("train", "validation").shared == 1
    with pytest.raises(UserError, match="2 of the 2 documents"):
        own.overlap("validation", "validation").check(allowed=False)


@pytest.mark.parametrize(("license", "refused"), [(9, False), (11, True)])
def test_overlap_is_refused_by_the_weight_of_its_text(license: int, refused: bool, tmp_path, caplog) -> None:
    """License headers are a hundredth of the validation text at most, and files of whitespace are not counted."""
    write(tmp_path, MANY)
    asked, learned = ([n for n in MANY if (_split_of(n) == split)] for split in ("validation", "train"))
    blank = dict.fromkeys([asked[1], *learned[1:9]], " \n")
    text = {asked[0]: "L" * license, learned[0]: "L" * license, asked[2]: "x" * (998 - license)}
    for name in asked[3:]:
        (tmp_path / name).unlink()
    own = OwnText(f"{write(tmp_path, blank | text)}/**")
    found = own.overlap("train", "validation")
    assert (found.shared, found.validation, found.repeated) == (1, 3, 0)
    assert found.characters == (license, 1000)
    told = rf"^1 of the 3 documents .*{asked[0]} is .*{learned[0]}\), {license / 10:.2f}% of its characters"
    if refused:
        with pytest.raises(UserError, match=f"{told}.*below 1% is not refused.*--allow_overlap"):
            found.check(allowed=False)
    else:
        found.check(allowed=False)
        assert re.search(f"{told}: it is refused only from 1% on.$", caplog.records[-1].getMessage())


def test_files_that_heed_made_are_no_text(tmp_path) -> None:
    """The folder of data lies below that of the texts: the second opening reads what the first did."""
    write(tmp_path, MANY)
    config = config_of(tmp_path / "data", path=f"{tmp_path}/**", tokenizer="bpe", vocab_size=263)
    first = open_data(config)
    assert len(first.windows("train")) > 3
    assert len(list((tmp_path / "data/heed").iterdir())) > 1
    write(tmp_path, {"data/heed/note.txt": "kept", "link.txt": ""})
    (tmp_path / "link.txt").unlink()
    (tmp_path / "link.txt").symlink_to("data/heed/note.txt")
    assert open_data(config).fingerprint == first.fingerprint
    write(tmp_path, {"data/mine.txt": "text"})  # whatever else lies there is meant
    assert open_data(config).fingerprint != first.fingerprint
