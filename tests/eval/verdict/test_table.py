"""A CSV of runs: what is read of it, in any order, and one sentence for each thing that cannot be read."""

import math
import random
from pathlib import Path

import pytest

from eval.verdict.table import read_table
from model import UserError

GOOD = "arm,seed,value\nbase,0,3.5\nbase,1,3.25\nwide,0,1e-3\nwide,1,inf\n"


def write(folder: Path, text: str | bytes) -> Path:
    (folder / "runs.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "runs.csv"


def test_every_other_name_is_an_arm_and_a_failed_run_keeps_its_place(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, GOOD))
    assert table.values == {"base": {0: 3.5, 1: 3.25}, "wide": {0: 0.001, 1: math.inf}}
    assert (table.name, table.seeds, table.others) == ("runs.csv", (0, 1), {})
    assert table.others_than("wide") == ("base",)


@pytest.mark.parametrize("failed", ["", "  ", "inf", "-inf", "Infinity", "nan", '""'])
def test_what_is_not_finite_is_a_failed_run(failed: str, tmp_path: Path) -> None:
    assert read_table(write(tmp_path, GOOD.replace("inf", failed))).values["wide"][1] == math.inf


def test_the_order_of_lines_and_columns_and_how_they_end_mean_nothing(tmp_path: Path) -> None:
    names = ["heads_2", "heads_16", "base", 'a, "b" <c>', "größe 頭"]
    rows = [(name, seed, random.Random(f"{name}{seed}").random()) for name in names for seed in range(11)]
    quoted = {name: '"' + name.replace('"', '""') + '"' for name in names}
    plain = "arm,seed,value\n" + "".join(f"{quoted[name]},{seed},{value!r}\n" for name, seed, value in rows)
    first = read_table(write(tmp_path, plain))
    assert first.values == {name: {s: v for n, s, v in rows if n == name} for name in names}
    assert list(first.values) == ['a, "b" <c>', "base", "größe 頭", "heads_2", "heads_16"]
    random.Random(0).shuffle(rows)
    other = "\ufeffvalue, seed, arm\r\n\r\n" + "".join(f"{v!r}, {s} ,{quoted[n]}\r\n" for n, s, v in rows)
    second = read_table(write(tmp_path, other))
    assert list(second.values) == list(first.values)
    assert [[*second.values[arm].items()] for arm in second.values] == [
        [*runs.items()] for runs in first.values.values()
    ]


def test_other_columns_are_other_metrics(tmp_path: Path) -> None:
    lines = GOOD.splitlines()
    text = "\n".join(f"{line},{more}" for line, more in zip(lines, ["accuracy", ".5", "nan", "7", "1e2"], strict=True))
    others = read_table(write(tmp_path, text)).others
    assert others == {"accuracy": {"base": {0: 0.5, 1: math.inf}, "wide": {0: 7.0, 1: 100.0}}}


def test_names_of_many_digits_are_sorted_as_numbers(tmp_path: Path) -> None:
    """Of more than Python makes a number of."""
    names = ["9" * 4999, "1" + "0" * 4999, "k007", "k08", "k9", "k"]
    text = "arm,seed,value\n" + "".join(f"{name},{seed},1\n" for name in names for seed in "01")
    assert [*read_table(write(tmp_path, text)).values] == [*names[:2], "k", "k007", "k08", "k9"]


# What stands in the file, and what the sentence says: the line, the value, and the fix.
BAD = {
    "": ("line 1", "no column 'arm'"),
    "arm,seed,value\n": ("line 1", "arms: none", "two"),
    "arms,seed,value\na,0,1\n": ("line 1", "no column 'arm'", "rename 'arms'"),
    "arm,step,loss\na,0,1\n": ("line 1", "no column 'seed'", "'step'"),
    "arm;seed;value\na;0;1\n": ("line 1", "arm,seed,value"),
    "arm,seed,value,value\na,0,1,1\n": ("line 1", "'value' is there 2 times"),
    "arm,seed,value,\na,0,1,1\n": ("line 1", "name each"),
    GOOD + "wide,2\n": ("line 6", "2 cells under 3 columns", "commas"),
    GOOD + "wide,2,1,5\n": ("line 6", "4 cells under 3 columns", "commas"),
    GOOD + ",2,1\n": ("line 6", "the arm is empty"),
    GOOD + "wide,2.0,1\n": ("line 6", "seed='2.0'", "whole number"),
    GOOD + "wide,-2,1\n": ("line 6", "seed='-2'", "whole number"),
    GOOD + "wide,,1\n": ("line 6", "seed=''", "whole number"),
    GOOD + "wide,²,1\n": ("line 6", "seed='²'", "whole number"),
    GOOD + "wide,2,low\n": ("line 6", "value='low'", "number", "inf or nothing"),
    GOOD + 'wide,2,"1,5"\n': ("line 6", "value='1,5'", "number"),
    GOOD + "wide,2,1_5\n": ("line 6", "value='1_5'", "number"),
    GOOD + "wide,2,0x10\n": ("line 6", "value='0x10'", "number"),
    GOOD + "wide,2,1e999\n": ("line 6", "1e999", "within 1e+150", "inf for a failed run"),
    GOOD + "wide,2,-1e-200\n": ("line 6", "-1e-200", "0 or at least 1e-130 in size"),
    GOOD + "wide,2," + "9" * 999 + "x\n": ("line 6", "9...'", "number"),
    GOOD + "wide,1,7\n": ("line 6", "arm 'wide' with seed 1", "line 5", "leave one"),
    GOOD + "wide,01,7\n": ("line 6", "arm 'wide' with seed 1", "line 5", "leave one"),
    GOOD + "wide,2,7\n": ("line 6", "seed 2 has no line of 'base'", "has no value"),
    GOOD + "base,2,7\n\n": ("line 6", "seed 2 has no line of 'wide'", "has no value"),
    GOOD + 'wide,2,"7\n': ("line 6", "CSV"),
    "arm,seed,value\nbase,0,1\nbase,1,1\n": ("line 2", "arms: 'base'", "two"),
    "arm,seed,value\nbase,4,1\nwide,4,1\n": ("line 2", "1 seeds", "2 to 40"),
    "arm,seed,value\n" + "".join(f"{a},{s},1\n" for a in "ab" for s in range(41)): ("line 2", "41 seeds", "2 to 40"),
    "arm,seed,value,host\na,0,1,tpu7\n": ("line 2", "host='tpu7'", "leave other columns out"),
}


@pytest.mark.parametrize(("text", "parts"), BAD.items(), ids=range(len(BAD)))
def test_what_cannot_be_read_is_refused_by_its_line(text: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UserError) as refused:
        read_table(file)
    told = str(refused.value)
    assert told.startswith(f"--table={file}, line ")
    assert all(part in told for part in parts), told
    assert "\n" not in told
    assert len(told) < len(str(file)) + 300


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for file, part in ((tmp_path, "Is a directory"), (tmp_path / "none.csv", "No such file")):
        with pytest.raises(UserError, match=part):
            read_table(file)
    with pytest.raises(UserError, match="not UTF-8 at byte 15"):
        read_table(write(tmp_path, b"arm,seed,value\n\xff,0,1\n"))


def test_an_unknown_baseline_is_answered_with_the_nearest(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, GOOD))
    with pytest.raises(UserError, match="--baseline=bass: runs.csv has no such arm; the nearest is 'base'"):
        table.others_than("bass")
    with pytest.raises(UserError, match="there are 'base', 'wide'"):
        table.others_than("xyz")
