"""A quick answer says that it is one, and is not kept."""

from pathlib import Path
from typing import Any

import pytest

from launch import plan as command
from launch.configs import load
from launch.planning import running
from launch.planning.chips import parse_topology
from launch.planning.telling import QUICK, told
from launch.pods import money
from model import UserError
from tests.launch.planning.test_plan import TINY, needs_compiler
from train.run.files.json_files import dumps

WHERE = parse_topology("v5e:2x2")


def test_a_quick_answer_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler is asked again for it, and for the final one, which is kept and then told of both."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def compiled(job: dict[str, Any], _: float | None) -> dict[str, Any]:
        asked.append(job.get("effort"))
        return {"hbm_bytes": 2, "fits": True} | ({"effort": "low"} if "effort" in job else {})

    monkeypatch.setattr(running, "_compiled", compiled)
    config = load("base", **TINY)
    for effort, answer in (("low", "low"), ("low", "low"), ("default", None), ("low", None), ("default", None)):
        assert running.planned(config, WHERE, effort=effort).get("effort") == answer
    assert asked == ["low", "low", None]


@pytest.mark.rest
@needs_compiler
def test_a_quick_answer_is_of_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another program than the final one, and says in its words and its JSON that it is none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    low, final = (command.plan(load("base", **TINY), WHERE, effort=effort) for effort in ("low", "default"))
    assert (low["effort"], QUICK in told(low)) == ("low", True)
    assert "effort" not in final
    assert QUICK not in told(final)
    assert low["argument_bytes"] == final["argument_bytes"]
    assert (low["peak_bytes"], low["collective_bytes"]) != (final["peak_bytes"], final["collective_bytes"])


@pytest.mark.parametrize("whole", [True, False])
def test_nothing_is_paid_for_by_a_quick_answer(whole: bool, tmp_path: Path) -> None:
    """Of a run, or of one of the programs of an ablation."""
    final = {"peak_bytes": 3, "hbm_bytes": 4}
    one = {"topology": "v5e:2x2", "fits": True} | ({} if whole else {"programs": [final, final | {"effort": "low"}]})
    file = tmp_path / "plan.json"
    file.write_text(dumps(one | (final | {"effort": "low"} if whole else {})))
    with pytest.raises(UserError, match=rf"^--plan={file} is of --effort=low, which is no final answer: make one"):
        money.planned(str(file), "", 1)
