"""The table that a run's folder keeps: its numbers beside loops, and when it is measured anew."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from eval.explain.faithfulness import kept
from eval.explain.faithfulness.kept import Row, Table
from eval.explain.methods.table import METHODS, Method
from tests.eval.explain.bag import Bag, BagConfig, V
from tests.eval.explain.faithfulness.test_validation import Asking, Rows, run_of

NUMBERED = Method(lambda asked: {"embedding": jnp.asarray(asked.inputs["tokens_BT"]) * 7 % V})  # it knows no model
FEW = {"gradient_x_input": METHODS["gradient_x_input"], "numbered": NUMBERED, "leave_one_out": METHODS["leave_one_out"]}
MADE = Table("class", 2, "", {"gradient": Row("not faithful here", 24, 0.5)})


@dataclasses.dataclass(frozen=True)
class Labelled(BagConfig):
    labels: int = 2


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A bag that has learned nothing, and rows of up to 13 tokens, no two of them the same."""
    (tmp_path / "passport.json").write_text(json.dumps({"data": {"fingerprint": "one"}}))
    tokens_BT = np.random.default_rng(0).permuted(np.tile(np.arange(V), (24, 1)), axis=1)[:, :13]
    valid_BT = np.arange(13) < 13 - np.arange(24)[:, None] % 5
    return run_of(Asking(), Bag(Labelled(), nnx.Rngs(0)), tmp_path, tokens=tokens_BT, valid=valid_BT)


def by_hand(run: Any, compared: str) -> dict[str, dict[str, float]]:
    """Some columns of each method, token by token."""
    data: Rows = run.data
    tokens_BT, real_BT = data.batch["tokens"], data.batch["valid"]
    table_VD, kernel_D2 = (np.asarray(x[...], np.float64) for x in (run.model.table, run.model.kernel))
    each_BT2, other_2 = (table_VD @ kernel_D2)[tokens_BT], {"mean": table_VD.mean(0), "zero": 0 * table_VD[0]}[compared]
    other_2 = other_2 @ kernel_D2
    columns: dict[str, list[list[float]]] = {name: [[], [], []] for name in FEW}
    for row, real_T in enumerate(real_BT):
        each_n2 = each_BT2[row, real_T]
        best = each_n2.sum(0).argmax()

        def said(taken: list[int], each_n2: np.ndarray = each_n2, best: int = best) -> float:
            kept_n2 = each_n2.copy()
            kept_n2[taken] = other_2
            return float(1 / (1 + np.exp(kept_n2.sum(0)[1 - best] - kept_n2.sum(0)[best])))

        numbers_n = (7 * tokens_BT[row] % V)[real_T]
        maps = dict(zip(FEW, (each_n2[:, best], numbers_n, (each_n2 - other_2)[:, best]), strict=True))
        for name, map_n in maps.items():
            order = np.argsort(-map_n, kind="stable").tolist()
            counts = [max(round(len(order) * share), 1) for share in (0.01, 0.05, 0.1, 0.2, 0.5)]
            lost, left = [], []
            for count in counts:
                lost.append(said([]) - said(order[:count]))
                left.append(said([]) - said(order[count:]))
            columns[name][0].append(float(np.mean(lost)))
            columns[name][1].append(float(np.mean(left)))
            columns[name][2].append(float(stats.kendalltau(map_n, maps["leave_one_out"]).statistic))
    return {
        name: {"lost": np.mean(lost), "sufficiency": np.mean(left[:8]), "leave_one_out": np.mean(taus)}
        for name, (lost, left, taus) in columns.items()
    }


@pytest.mark.parametrize("compared", ["mean", "zero"])
def test_rows_are_those_of_a_loop(run: Any, compared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All examples, and the first 8 of what takes long; tokens are taken to what they are compared with."""
    monkeypatch.setattr(kept, "METHODS", FEW)
    made = kept.table(run, lambda line: None, compared=compared)
    for name, want in by_hand(run, compared).items():
        row = made.rows[name]
        assert (row.examples, row.few) == (24, 8)
        assert {column: getattr(row, column) for column in want} == pytest.approx(want, abs=1e-5), name
    assert made.rows["leave_one_out"].infidelity == pytest.approx(0, abs=1e-8)  # the answer is a sum of what tokens say
    assert [file.name for file in run.folder.glob("faithfulness*")] == [
        {"mean": "faithfulness-2.json", "zero": "faithfulness-2-zero.json"}[compared]
    ]
    said = list[str]()
    assert kept.table(run, said.append, compared=compared) == made
    assert not said


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which tables are measured, by kind and what tokens are compared with; none is, for the time that takes."""
    found = list[tuple[str, str]]()

    def measured(run: Any, kind: str, key: str, say: Any, compared: str) -> Table:
        found.append((kind, compared))
        return dataclasses.replace(MADE, kind=kind, key=key)

    monkeypatch.setattr(kept, "measured", measured)
    return found


def test_each_question_has_a_table_of_its_own(run: Any, counted: list[tuple[str, str]]) -> None:
    asked = [("class", "mean"), ("class against another", "mean"), ("class", "zero"), ("class against another", "zero")]
    for _ in range(2):
        made = [kept.table(run, kind=kind, compared=compared) for kind, compared in asked]
        assert [one.kind for one in made] == [kind for kind, _ in asked]
        assert len({one.key for one in made}) == 4
        assert counted == asked
    assert sorted(file.name for file in run.folder.glob("faith*")) == [
        *("faithfulness-2-class-against-another-zero.json", "faithfulness-2-class-against-another.json"),
        *("faithfulness-2-zero.json", "faithfulness-2.json"),
    ]


def test_a_table_is_of_parameters_data_numbers_and_code(
    run: Any, counted: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one of them is another, it is measured anew; a page or a README is none of them."""
    for room in ("explain", "model", "tasks"):
        for name in ("in/code.py", "README.md", *(["page/shown.py"] if room == "explain" else [])):
            (tmp_path / room / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / room / name).write_text("1")
    (tmp_path / "pvalues.py").write_text("1")
    for name, room in (("explain", "explain"), ("model_room", "model"), ("tasks", "tasks")):
        monkeypatch.setattr(kept, name, SimpleNamespace(__path__=[str(tmp_path / room)]))
    monkeypatch.setattr(kept, "pvalues", SimpleNamespace(__file__=str(tmp_path / "pvalues.py")))

    def rewritten(name: str, text: str = "2") -> Callable[[], object]:
        return lambda: (tmp_path / name).write_text(text)

    def learned() -> None:
        run.model.kernel[...] = run.model.kernel[...].at[4, 1].add(1e-6)

    changes: dict[str, Callable[[], object]] = {
        "parameters": learned,
        "data": rewritten("passport.json", json.dumps({"data": {"fingerprint": "two"}})),
        "methods": lambda: monkeypatch.setattr(kept, "METHODS", FEW),
    }
    for number in ("EXAMPLES", "TOKENS", "FEW", "CHOICES", "SHIFTS", "RADIUS"):
        changes[number] = lambda number=number: monkeypatch.setattr(kept, number, getattr(kept, number) / 2)
    for file in ("explain/in/code.py", "model/in/code.py", "tasks/in/code.py", "pvalues.py"):
        changes[file] = rewritten(file)
    kept.table(run)
    for number, (name, change) in enumerate(changes.items(), 2):
        change()
        found = [kept.table(run).key for _ in range(2)]
        assert len(counted) == number, name
        assert found[0] == found[1]
    for file in ("explain/page/shown.py", "explain/README.md", "model/README.md"):
        rewritten(file)()
    kept.table(run)
    assert len(counted) == 1 + len(changes)


@pytest.mark.parametrize(
    "rows",
    [{}, [], {"gradient": {"word": "faithful", "examples": 24}}, {"gradient": {"word": "not measured"}}, [1], None],
)
def test_a_kept_table_that_is_none_is_set_aside(run: Any, counted: list[tuple[str, str]], rows: Any) -> None:
    """And measured anew, be its key the right one."""
    made, file = kept.table(run), run.folder / "faithfulness-2.json"
    told = json.loads(file.read_text()) | {"rows": rows}
    file.write_text(json.dumps(told))
    assert kept.table(run) == made
    assert len(counted) == 2
    assert json.loads((run.folder / "broken-faithfulness-2.json").read_text()) == told
    assert kept.table(run) == made
    assert len(counted) == 2
