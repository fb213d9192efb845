"""`launch.ablate --table`: a verdict on runs of any framework, its exit status, and what is refused."""

import json
import random
import re
from pathlib import Path

import pytest

from launch import ablate
from tests.launch.test_bad_input import assert_refused, contents
from tests.tiny import Outcome, call, end, start

NOISE = [0.9, -1.1, 0.3, -0.4, 1.3, -0.7, 0.2, -0.5]  # of a pair's difference, by seed; its mean is 0


def table(file: Path, **shifts: float) -> Path:
    """Eight seeds of `base`, and of arms that differ from it by a shift and a noise of a hundredth."""
    lines = ["arm,seed,value"]
    for at, noise in enumerate(NOISE):
        lines.append(f"base,{at},{3 + 0.1 * noise!r}")
        lines += [f"{arm},{at},{3 + 0.1 * noise + shift + 0.01 * noise!r}" for arm, shift in shifts.items()]
    file.write_text("\n".join(lines) + "\n")
    return file


def judge(file: Path, *words: str, smallest: float = 0.02, direction: str = "lower") -> Outcome:
    flags = [f"--table={file}", "--baseline=base", f"--direction={direction}", f"--smallest={smallest}"]
    return call(ablate.main, [*flags, *words])


# Arms with their shifts, D, and the words and the status that come of them; an effect is found from .012 on.
STATUSES: list[tuple[dict[str, float], float, list[str], int]] = [
    ({"a": -0.05}, 0.02, ["BETTER"], 0),
    ({"a": 0.05}, 0.02, ["WORSE"], 3),
    ({"a": -0.02}, 0.2, ["DIFFERENT BUT BELOW D (better)"], 4),
    ({"a": 0.02}, 0.2, ["DIFFERENT BUT BELOW D (worse)"], 4),
    ({"a": 0.0}, 0.02, ["EQUIVALENT WITHIN D"], 5),
    ({"a": 0.0}, 0.001, ["NOT DISTINGUISHABLE"], 6),
    ({"a": 0.05, "b": -0.05, "c": 0.0}, 0.001, ["WORSE", "BETTER", "NOT DISTINGUISHABLE"], 0),
    ({"a": 0.05, "b": 0.0}, 0.001, ["WORSE", "NOT DISTINGUISHABLE"], 6),
    ({"a": 0.05, "b": 0.0}, 0.03, ["WORSE", "EQUIVALENT WITHIN D"], 5),
    ({"a": 0.05, "b": -0.05}, 0.2, ["DIFFERENT BUT BELOW D (worse)", "DIFFERENT BUT BELOW D (better)"], 4),
]


@pytest.mark.parametrize(("shifts", "smallest", "words", "status"), STATUSES)
def test_the_exit_status_is_the_verdict(
    shifts: dict[str, float], smallest: float, words: list[str], status: int, tmp_path: Path
) -> None:
    done = judge(table(tmp_path / "my runs.csv", **shifts), smallest=smallest)
    assert (done.status, done.err) == (status, "")
    assert re.findall(r"^  (\w+): ([A-Z].*)$", done.out, re.MULTILINE) == [*zip(shifts, words, strict=True)]
    assert done.out.endswith(f"\npage: {tmp_path}/my runs.verdict/verdict.html\n")
    told = json.loads((tmp_path / "my runs.verdict/verdict.json").read_text())
    assert told["status"] == status
    assert [row["word"] for row in told["rows"]] == [word.partition(" (")[0] for word in words]
    assert told["declared"] | {"question": ""} == {
        "question": "",
        "contrasts": [{"name": arm, "plus": [arm], "minus": ["base"]} for arm in shifts],
        "endpoint": "value",
        "direction": "lower",
        "smallest": smallest,
        "alpha": 0.05,
        "looks": [8],
        "success": None,
    }


def test_the_direction_turns_the_word_around(tmp_path: Path) -> None:
    assert judge(table(tmp_path / "runs.csv", a=0.05), direction="higher").status == 0


def test_alpha_is_heard(tmp_path: Path) -> None:
    file = table(tmp_path / "runs.csv", a=0.009)
    assert judge(file, smallest=0.001).status == 3
    strict = judge(file, "--alpha=0.01", smallest=0.001)
    assert strict.status == 6
    assert " at 99 %" in strict.out


def test_shuffled_lines_make_the_same_bytes_wherever_they_are(tmp_path: Path) -> None:
    file = table(tmp_path / "runs.csv", a=0.05, b=0.0)
    head, *lines = file.read_text().splitlines()
    random.Random(3).shuffle(lines)
    (tmp_path / "else").mkdir()
    (tmp_path / "else/runs.csv").write_text("\n".join([head, *lines]))
    judge(file)
    judge(tmp_path / "else/runs.csv", f"--workdir={tmp_path}/else/there/page")
    one, other = contents(tmp_path / "runs.verdict"), contents(tmp_path / "else/there/page")
    assert one.keys() == other.keys() == {"verdict.html", "verdict.md", "verdict.csv", "seeds.csv", "verdict.json"}
    for name in ("verdict.csv", "seeds.csv", "verdict.json"):
        assert one[name] == other[name]
        assert str(tmp_path).encode() not in one[name]
    # What it writes, it reads: the same verdict again.
    judge(tmp_path / "runs.verdict/seeds.csv", f"--workdir={tmp_path}/again")
    assert (tmp_path / "again/verdict.csv").read_bytes() == one["verdict.csv"]


def test_the_page_has_the_command_and_what_could_not_be_checked(tmp_path: Path) -> None:
    file = table(tmp_path / "my runs.csv", a=0.05)
    file.write_text(
        "\n".join(f"{line},{at}" if at else f"{line},steps" for at, line in enumerate(file.read_text().split()))
    )
    judge(file)
    page = (tmp_path / "my runs.verdict/verdict.md").read_text().replace("\\", "")
    flags = f"--table='{file}' --baseline=base --direction=lower --smallest=0.02"
    assert f"-m launch.ablate {flags}\n" in page
    for part in (
        "## Not checked",
        "- budget: ",
        "- init: ",
        "- looks: ",
        "- missing: ",
        "## Exploratory",
        "| steps, a | 1 |",
    ):
        assert part in page


def test_few_seeds_are_no_difference_and_are_told(tmp_path: Path) -> None:
    file = table(tmp_path / "runs.csv", a=0.5)
    file.write_text(
        "\n".join(line for line in file.read_text().splitlines() if ",0," in line or ",1," in line or "arm" in line)
    )
    assert judge(file, smallest=0.001).status == 6
    assert "at least 6" in (tmp_path / "runs.verdict/verdict.md").read_text()


@pytest.mark.rest
def test_fifty_arms_of_forty_seeds_make_a_page_below_a_megabyte(tmp_path: Path) -> None:
    drawn, lines = random.Random(0), ["arm,seed,value,accuracy"]
    for arm in ("base", *(f"a_longer_arm_name_{at:02}" for at in range(50))):
        lines += [f"{arm},{seed},{drawn.gauss(3.5, 0.01)!r},{drawn.random()!r}" for seed in range(40)]
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    assert judge(tmp_path / "runs.csv").status == 5
    page = (tmp_path / "runs.verdict/verdict.html").read_bytes()
    assert page.count(b"<circle") == 50 * 40 + 51 * 40
    assert len(page) < 1_000_000


@pytest.mark.rest
def test_as_a_command(tmp_path: Path) -> None:
    file = table(tmp_path / "runs.csv", a=0.0)
    words = ["-m", "launch.ablate", f"--table={file}", "--baseline=base", "--direction=lower", "--smallest=0.02"]
    done = end(start(*words))
    assert (done.status, done.err) == (5, "")
    assert "a: EQUIVALENT WITHIN D" in done.out
    assert_refused(end(start(*words[:3], "--baseline=bsae", *words[4:])), "--baseline=bsae", "the nearest is 'base'")


# Words in place of those of a good command, and what the sentence says.
REFUSED: list[tuple[list[str], tuple[str, ...]]] = [
    (["--baseline=bas"], ("--baseline=bas", "the nearest is 'base'")),
    (["--direction=down"], ("--direction", "'down'", "lower")),
    (["--smallest=0"], ("--smallest=0.0", "above 0")),
    (["--smallest=nan"], ("--smallest=nan", "above 0")),
    (["--smallest=1%"], ("--smallest=1%", "a number is needed")),
    (["--alpha=0"], ("--alpha=0.0", "above 0")),
    (["--alpha=5"], ("--alpha=5.0", "at most 0.2")),
    (["--workdir="], ("--workdir is empty",)),
    (["--workdir=/proc/none/x"], ("--workdir=/proc/none/x", "cannot be written")),
    (["--config.train.steps=3"], ("--config.train.steps", "leave this out")),
    (["--plan=configs/ablations/none.py"], ("--plan=configs/ablations/none.py",)),
    (["--jobs=2"], ("--jobs says nothing of a table",)),
    (["--dry-run"], ("--dry-run says nothing of a table",)),
    (["--program=abc"], ("--program says nothing of a table",)),
]


@pytest.mark.parametrize(("words", "parts"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_bad_flags_are_refused(words: list[str], parts: tuple[str, ...], tmp_path: Path) -> None:
    file = table(tmp_path / "runs.csv", a=0.0)
    before = contents(tmp_path)
    assert_refused(judge(file, *words), *parts)
    assert contents(tmp_path) == before


def test_missing_flags_and_files_are_refused(tmp_path: Path) -> None:
    file = table(tmp_path / "runs.csv", a=0.0)
    for missing in ("baseline", "direction", "smallest"):
        words = [f"--table={file}", "--baseline=base", "--direction=lower", "--smallest=1"]
        kept = [word for word in words if not word.startswith(f"--{missing}")]
        assert_refused(call(ablate.main, kept), f"--{missing} is missing", "--plan")
    assert_refused(judge(tmp_path / "none.csv"), "none.csv", "No such file")
    (tmp_path / "torn.csv").write_text(file.read_text() + "a,8")
    assert_refused(judge(tmp_path / "torn.csv"), "torn.csv, line 18", "2 cells under 3 columns")
    (tmp_path / "seeds.csv").write_text(file.read_text() + "\n")
    assert_refused(judge(tmp_path / "seeds.csv", f"--workdir={tmp_path}"), "would write over", "another folder")
    assert {path.name for path in tmp_path.iterdir()} == {"runs.csv", "torn.csv", "seeds.csv"}


PLAN = """
def get_plan():
    return {"question": "Does it?", "arms": {"base": {}, "a": {"model.mask": "causal & window(7)"}},
            "factor": ["model.mask"], "endpoint": "val/loss", "smallest": SMALLEST, "seeds": range(8),
            "pilot_seeds": range(20, 24), "waived": {"budget": "it is a table"}}
"""


def plan(folder: Path, smallest: str = "0.02", **changes: str) -> str:
    text = PLAN.replace("SMALLEST", smallest)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "plan.py").write_text(text)
    return f"--plan={folder}/plan.py"


def by_plan(file: Path, *words: str) -> Outcome:
    return call(ablate.main, [f"--table={file}", *words])


def test_a_plan_declares_in_place_of_the_flags(tmp_path: Path) -> None:
    file = table(tmp_path / "runs.csv", a=0.0)
    done = by_plan(file, plan(tmp_path))
    assert (done.status, done.err) == (5, "")
    assert done.out.startswith("Does it?\n  a: EQUIVALENT WITHIN D\n")
    page = (tmp_path / "runs.verdict/verdict.md").read_text().replace("\\", "")
    for part in ("| budget | it is a table |", "| factor | model.mask |", "## Not checked", " --plan="):
        assert part in page
    # D as a share of a pilot, which the table does not hold, is given beside it.
    assert_refused(by_plan(file, plan(tmp_path, "'1 %'")), "smallest='1 %'", "--smallest=D")
    assert by_plan(file, plan(tmp_path, "'1 %'"), "--smallest=0.001").status == 6


def test_a_table_that_is_not_the_plans_is_refused_with_both_lists(tmp_path: Path) -> None:
    file = table(tmp_path / "runs.csv", a=0.0)
    assert_refused(by_plan(file, plan(tmp_path), "--smallest=1"), "--smallest", "leave it out")
    assert_refused(by_plan(file, plan(tmp_path), "--baseline=a"), "--baseline", "leave it out")
    other = table(tmp_path / "other.csv", c=0.0)
    assert_refused(by_plan(other, plan(tmp_path)), "the arms base, c", "has base, a")
    seeds = plan(tmp_path, **{"range(8)": "[0, 1, 2, 3, 4, 5, 6, 9]"})
    assert_refused(by_plan(file, seeds), "the seeds 0, 1, 2, 3, 4, 5, 6, 7", "has 0, 1, 2, 3, 4, 5, 6, 9")
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"runs.csv", "other.csv", "plan.py"}
