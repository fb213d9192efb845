"""The fastest plan, of all that may be tried: what is tried, in which order, what is not and why; and how it ends."""

import itertools
import json
import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from launch import plan as command
from launch.configs import load
from launch.planning import against, rates, running
from launch.planning.candidates import Candidate, allowed, candidate, meshes
from launch.planning.chips import parse_topology
from launch.planning.running import before
from launch.planning.search import Search
from tests.launch.planning.test_plan import TINY, needs_compiler
from tests.tiny import call
from train.experiment import make_model_config

WHERE = parse_topology("v5e:2x2")
GIB = 2**30
KEYS = TINY | {"data.batch_size": 12, "data.length": 250, "model.num_heads": 6, "model.width": 60}
KNOWN = {
    "hbm_bytes": 16 * GIB, "flops_per_token": 1.97e14, "attention_flops_per_token": 0.0, "parameters": 10**6,
    "labels": 0, "steps": 0, "devices": 4,
    "state_bytes": {"fsdp+tensor": 24 * GIB, "": GIB},
}  # fmt: skip
Answer = Callable[[ConfigDict, dict[str, int]], dict[str, Any]]


def sizes_of(config: ConfigDict) -> dict[str, int]:
    mesh = dict(config.mesh.items())
    mesh["fsdp"] = 4 // math.prod(mesh[axis] for axis in ("replica", "tensor", "context"))
    return {axis: mesh[axis] for axis in ("replica", "fsdp", "tensor", "context")}


class Compiler:
    """Stands for the compiler: how many bytes a config needs, and which traffic it has; and what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Answer):
        self.asked, self.answer = list[ConfigDict](), answer
        monkeypatch.setattr(running, "_compiled", self)

    def __call__(self, job: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        if not job.get("compile", True):
            return KNOWN
        config = ConfigDict(job["config"])
        self.asked.append(config)
        found = {"needed_bytes": 9 * GIB, "peak_bytes": 1, "collective_bytes": 0, "wire_bytes": 0, "classes": {}}
        found |= {"tokens_per_step": config.data.batch_size * 250, "mesh": {}, "replicated_bytes": {}, "chips": 4}
        found |= {"topology": "v5e:2x2", "slices": 1, "collective_bytes_by_kind": {}, "asynchronous_bytes": 0}
        found |= {"slow_bytes": 0} | self.answer(config, sizes_of(config))
        return KNOWN | found | {"fits": found["needed_bytes"] <= KNOWN["hbm_bytes"]}


def searched(folder: Path, *words: str) -> tuple[dict[str, Any], str, int | None]:
    keys = [f"--config.{key}={value}" for key, value in KEYS.items()]
    flags = ["--config=configs/base.py", "--topology=v5e:2x2", "--search", f"--json={folder / 'found.json'}"]
    outcome = call(command.main, [*flags, *keys, *words])
    assert outcome.status in (0, 1, 130), outcome.err
    return json.loads((folder / "found.json").read_text()), outcome.out, outcome.status


def whole_of(search: dict[str, Any]) -> bool:
    """Whether each candidate is counted once."""
    why = sum(search[name] for name in ("too_large", "refused", "keep_more", "slower", "left"))
    return bool(search["candidates"] == why + len(search["tried"]))


def test_meshes_are_all_factorings() -> None:
    """Against all that multiply, by force; between slices replica alone goes."""
    for where in (parse_topology("v5e:2x4"), parse_topology("v5e:2x2", 3)):
        sizes = range(1, where.devices + 1)
        every = {one for one in itertools.product(sizes, repeat=4) if math.prod(one) == where.devices}
        found = [tuple(mesh.values()) for mesh in meshes(where)]
        assert len(found) == len({*found})
        assert {*found} == {one for one in every if one[0] % where.slices == 0}


def test_limits_are_those_of_the_family() -> None:
    """6 heads, 12 rows of 250 places: no 4 devices share heads or places, and no micro-batch is a part of a row."""
    config = load("base", **KEYS)
    model = make_model_config(config, 256)
    found = allowed(config, WHERE, model, [12])
    assert not found[0][1]  # as it is comes first
    for one, changes, mesh in found:
        assert mesh["tensor"] < 4 > mesh["context"]
        assert 12 % (one.train.accumulate * mesh["replica"] * mesh["fsdp"]) == 0
        assert sizes_of(one) == mesh
        assert one.to_dict() == load("base", **KEYS | changes).to_dict()
    assert {one.train.accumulate for one, _, _ in found} == {1, 2, 4}
    assert {one.model.remat for one, _, _ in found} == {"none", "dots", "full"}
    assert len(found) == len({repr((mesh, changes)) for _, changes, mesh in found})


def test_what_is_too_large_is_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state's 24 GiB lie on fsdp x tensor devices: on one they do not fit, whatever else is changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = Compiler(monkeypatch, lambda config, mesh: {"wire_bytes": 9e14})  # slow: nothing is dropped for time
    found, out, status = searched(tmp_path)
    assert (status, found["search"]["ended"], found["search"]["left"]) == (0, "complete", 0)
    assert found["search"]["too_large"] > 0
    assert all(mesh["fsdp"] * mesh["tensor"] > 1 for mesh in map(sizes_of, compiler.asked))
    assert len(compiler.asked) == found["search"]["candidates"] - found["search"]["too_large"]
    assert "the search is complete" in out


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_fastest_is_found(factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by force of all: of two copies, whose 870 s to send are less than the 1000 of the products of `full`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def answer(config: ConfigDict, mesh: dict[str, int]) -> dict[str, Any]:
        more = 0.2 * mesh["tensor"] + 0.05 * config.train.accumulate - 0.1 * (mesh["replica"] == 2)
        return {"wire_bytes": 1.2e14 * (1.15 + more)}

    monkeypatch.setattr(against, "correction", lambda where: {"factor": factor, "factor_origin": None})
    compiler = Compiler(monkeypatch, answer)
    found, out, _ = searched(tmp_path)
    every = allowed(load("base", **KEYS), WHERE, make_model_config(load("base", **KEYS), 256), [12])
    those = [candidate(one, WHERE, KNOWN, make_model_config(one[0], 256)) for one in every]

    def seconds(config: ConfigDict) -> float:
        facts = compiler(running._job(config, WHERE))
        return factor * rates.step(facts, WHERE, config.model.remat).seconds

    asked = [*compiler.asked]
    best = min(seconds(one.config) for one in those if one.least_bytes <= KNOWN["hbm_bytes"])
    assert found["model"]["seconds_per_step"] == pytest.approx(best)
    assert found["flags"] == [f"--config.{key}={value}" for key, value in found["changes"].items()]
    changed = load("base", **KEYS | found["changes"])
    assert seconds(changed) == pytest.approx(best)
    assert f"the fastest by the model of time: {' '.join(found['flags'])}" in out
    assert found["search"]["ended"] == "complete"
    assert found["changes"]["mesh.replica"] == 2
    assert asked[0].to_dict() == load("base", **KEYS).to_dict()


def test_what_is_bound_by_products_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other can be faster than one that does nothing else and nothing again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = Compiler(monkeypatch, lambda config, mesh: {})
    found, _, _ = searched(tmp_path)
    assert [one.model.remat for one in compiler.asked][0] == "full"
    assert len(compiler.asked) == 2
    assert found["changes"]["model.remat"] != "full"
    told = found["search"]
    assert told["candidates"] == told["too_large"] + told["slower"] + 2


def test_what_keeps_more_than_one_that_does_not_fit_is_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing fits: on each mesh what keeps least is tried at last; the nearest is told, and the status is 1."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keeps = {"none": 5, "dots": 3, "full": 1}

    def answer(config: ConfigDict, mesh: dict[str, int]) -> dict[str, Any]:
        return {"needed_bytes": (16 + keeps[config.model.remat] / config.train.accumulate) * GIB, "peak_bytes": None}

    compiler = Compiler(monkeypatch, answer)
    found, out, status = searched(tmp_path)
    assert (status, found["fits"], found["search"]["ended"]) == (1, False, "complete")
    told = found["search"]
    assert told["keep_more"] > 0
    assert told["candidates"] == told["too_large"] + told["keep_more"] + len(told["tried"])
    asked = {(repr(sizes_of(one)), one.model.remat, one.train.accumulate) for one in compiler.asked}
    most = {mesh: max(acc for own, _, acc in asked if own == mesh) for mesh, _, _ in asked}
    assert {(mesh, "full", acc) for mesh, acc in most.items()} <= asked
    assert "nothing fits; the nearest needs 16.25 GiB of 16.00 GiB: --config.mesh." in out


def test_accumulation_needs_a_sum_of_gradients_besides() -> None:
    """So what does not fit with it says nothing of the same micro-batch without."""
    keys = KEYS | {"data.batch_size": 24}
    model = make_model_config(load("base", **keys), 256)
    every = allowed(load("base", **keys), WHERE, model, [12, 24, 48])
    those = [candidate(one, WHERE, KNOWN, model) for one in every]

    def of(batch: int, accumulate: int) -> Candidate:
        return next(
            one
            for one in those
            if (one.config.data.batch_size, one.config.train.accumulate) == (batch, accumulate)
            and (one.mesh, one.config.model.remat) == (those[0].mesh, "full")
        )

    assert not of(12, 1).keeps_more(of(24, 2))
    assert not of(24, 1).keeps_more(of(24, 2))
    assert of(24, 2).keeps_more(of(12, 1))
    assert of(48, 2).keeps_more(of(24, 2))


def test_what_a_policy_needs_is_learned_from_its_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without remat nothing fits, which the guess does not know: after one try of it others come first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    needs = {"none": 99 * GIB, "dots": 9 * GIB, "full": 8 * GIB}
    compiler = Compiler(
        monkeypatch, lambda config, mesh: {"needed_bytes": needs[config.model.remat], "wire_bytes": 9e14}
    )
    searched(tmp_path)
    remats = [one.model.remat for one in compiler.asked]
    first = remats.index("none")
    assert remats.index("none", first + 1) - first > 5  # those of which the guess is that they fit


def test_a_second_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first has compiled is not compiled again; one that its time ended is; the last is complete."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = Compiler(monkeypatch, lambda config, mesh: {"wire_bytes": 9e14})
    searched(tmp_path)
    every = [one.to_dict() for one in whole.asked]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    turns = iter((3, 2, 1000))
    compilers = []
    for ended in ("time", "time", "complete"):
        left = next(turns)

        def answer(config: ConfigDict, mesh: dict[str, int]) -> dict[str, Any]:
            nonlocal left
            left -= 1
            if left < 0:
                raise subprocess.TimeoutExpired("compiler", 1)
            return {"wire_bytes": 9e14}

        compilers.append(Compiler(monkeypatch, answer))
        found, out, _ = searched(tmp_path)
        assert found["search"]["ended"] == ended
        assert whole_of(found["search"])
        assert ("the same command goes on" in out) is (ended == "time")
    asked = [[one.to_dict() for one in compiler.asked] for compiler in compilers]
    assert [len(one) for one in asked] == [4, 3, len(every) - 5]
    assert asked[0][:3] + asked[1][:2] + asked[2] == every


def test_a_search_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler is given what is left of it; none is begun after it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clock = itertools.count(0, 25)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    given = []

    def compiled(config: ConfigDict, seconds: float) -> dict[str, Any]:
        given.append(seconds)
        return KNOWN | {
            "needed_bytes": 1,
            "fits": True,
            "tokens_per_step": 1,
            "model": {"seconds_per_step": 1e9, "factor": 1.0},
        }

    search = Search(load("base", **KEYS), WHERE, lambda config: KNOWN)
    search.run(compiled, 90, lambda text: None)
    assert given == [65, 40, 15]
    assert search.ended == "time"


def test_ctrl_c_prints_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    turns = itertools.count()

    def answer(config: ConfigDict, mesh: dict[str, int]) -> dict[str, Any]:
        if next(turns) == 2:
            raise KeyboardInterrupt
        return {"wire_bytes": 9e14}

    Compiler(monkeypatch, answer)
    found, out, status = searched(tmp_path)
    assert status == 130
    assert "the search is stopped, and the same command goes on: 2 tried" in out
    assert "the fastest by the model of time: " in out
    assert (found["fits"], found["search"]["ended"], len(found["search"]["tried"])) == (True, "interrupted", 2)


def test_what_is_refused_is_told_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh that a core refuses is known by the compiler's process alone; it is asked once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = Compiler(
        monkeypatch, lambda config, mesh: {"refused": "so"} if mesh["tensor"] > 1 else {"wire_bytes": 9e14}
    )
    found, out, _ = searched(tmp_path)
    told, count = found["search"], len(compiler.asked)
    assert whole_of(told)
    assert told["refused"] == out.count("  refused --config.mesh.") > 0
    assert "mesh.tensor" not in found["changes"]
    assert searched(tmp_path)[0]["search"] == told
    assert len(compiler.asked) == count


def test_other_batches_are_taken_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of a token; and it is said that they learn otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wire = {"wire_bytes": 2e15}
    compiler = Compiler(monkeypatch, lambda config, mesh: wire)
    _, out, _ = searched(tmp_path)
    assert {one.data.batch_size for one in compiler.asked} == {12}
    assert "learns otherwise" not in out
    found, out, _ = searched(tmp_path, "--batches=12, 28")
    assert {one.data.batch_size for one in compiler.asked} == {12, 28}
    assert found["changes"]["data.batch_size"] == 28
    assert "its batch is another than the config's, 2.33 times the tokens a step, and learns otherwise" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--search", "--minutes=0"], "--minutes=0 must be above 0 and at most 10000."),
        (["--search", "--minutes=nan"], "--minutes=nan must be above 0 and at most 10000."),
        (["--search", "--batches=8,x"], "--batches=8,x must be whole numbers above 0, by commas, such as 128,256."),
        (["--search", "--batches=0"], "--batches=0 must be whole numbers above 0, by commas, such as 128,256."),
        (["--search", "--topology=v5e:2x2,v5e:4x4"], "--topology=v5e:2x2,v5e:4x4: a search is on one slice; "),
        (["--search", "--shardings"], "--search and --shardings do not go together: leave one of them out."),
        (["--search", "--no-tries"], "--search and --no-tries do not go together: leave one of them out."),
        (["--search", "--effort=low"], "--search and --effort do not go together: leave one of them out."),
        (["--search", "--minutes=40000"], "--minutes=40000 must be above 0 and at most 10000."),
        (["--minutes=3"], "--minutes is of a search: add --search, or leave it out."),
        (["--batches=8"], "--batches is of a search: add --search, or leave it out."),
        (
            ["--search", "--config.data.batch_size=7", "--config.model.num_heads=1"],
            "--search: no mesh of the 4 devices of v5e:2x2 divides the sizes",
        ),
        (["--search", "--config.model.mlp=x"], "--config.model.mlp='x'"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_compiled", lambda *job: pytest.fail("asked"))
    outcome = call(command.main, ["--config=configs/base.py", "--topology=v5e:2x2", "--config.data.length=257", *words])
    assert outcome.status == 2
    assert outcome.err.splitlines()[-1].startswith(sentence), outcome.err


@pytest.mark.rest
@needs_compiler
def test_bounds_hold_of_what_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each candidate that the compiler was asked of, memory and time are at least what was said before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load("base", **TINY | {"data.length": 255, "data.batch_size": 4, "model.num_heads": 1})
    search = Search(config, WHERE, lambda one: before(one, WHERE))

    def compiled(one: ConfigDict, _: float) -> dict[str, Any]:
        if len(search.tried) == 4:
            raise subprocess.TimeoutExpired("compiler", 1)
        return command.plan(one, WHERE)

    search.run(compiled, 3600, print)
    print(search.told())
    assert search.counts["candidates"] == 9  # three meshes, three policies
    assert len({*map(str, (one.mesh for one, _ in search.tried))}) > 1
    for one, found in search.tried:
        assert one.mesh == found["mesh"]
        assert one.least_bytes <= found["needed_bytes"], one.changes
        assert one.least <= found["model"]["seconds_per_step"] / found["tokens_per_step"], one.changes
        on_each = one.least_bytes - 2 * 255 * 256 * 2  # without the layers' inputs of a row
        assert on_each <= found["argument_bytes"] <= 1.01 * on_each + 2**16
