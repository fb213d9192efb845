"""What a program is known by: all that its numbers depend on, and nothing else; another's record is never taken."""

from pathlib import Path
from typing import Any

import pytest

import model
from launch.ablation import programs
from launch.ablation.plan import Plan, config_of
from launch.ablation.programs import Program, Store, address, code_digest
from model.errors import UserError
from tests.launch.ablation.small_plan import small_plan
from train.run.folder import packages


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return small_plan(tmp_path_factory.mktemp("text"))


def test_a_programs_key_is_of_all_that_its_numbers_depend_on(plan: Plan) -> None:
    """And where the text lies, how it is read, and what is kept of a run, is none of it."""
    config = config_of(plan, "bare", 1e-3, seeds=8, first_seed=0)
    first = address(config)
    assert first.made.keys() == {"code", "packages", "data"}
    assert (first.made["code"], first.made["packages"]) == (code_digest(), packages())
    changes: list[tuple[str, Any]] = [
        *(("train.seed", 8), ("train.seeds", 7), ("data.seed", 1), ("train.dropout_seed", 5)),
        *(("optimizer.learning_rate", 2e-3), ("train.steps", 13), ("model.scale", 0.5), ("train.evaluate_windows", 2)),
    ]
    keys = {first.key}
    for key, value in changes:
        keys.add(Program(config_with(config, key, value), first.made).key)
    for name in first.made:
        keys.add(Program(config, {**first.made, name: "other"}).key)
    keys.add(Program(config, {**first.made, "packages": {**packages(), "jax": "0.0.1"}}).key)
    assert len(keys) == 1 + len(changes) + 3 + 1
    for key, value in (("data.path", "else/*.txt"), ("data.prefetch", 7), ("train.keep_last", 1), ("train.prompt", "")):
        assert Program(config_with(config, key, value), first.made).key == first.key


def config_with(config: Any, key: str, value: Any) -> Any:
    changed = config.copy_and_resolve_references()
    section, _, name = key.partition(".")
    changed[section][name] = value
    return changed


def test_the_code_is_every_file_by_which_a_run_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name and its text; of the judge, which reads what is finished, none."""
    monkeypatch.setattr(model, "__file__", str(tmp_path / "model" / "__init__.py"))
    own = [f"{room}/deep/one.py" for room in ("model", "train", "eval")] + ["launch/train.py"]
    free = ["eval/verdict/rule.py", "launch/ablate.py", "tests/test.py", "model/README.md"]
    for name in own + free:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    fresh = code_digest.__wrapped__  # which keeps no answer
    found = [fresh()]
    for name in own:
        (tmp_path / name).write_text("x = 2\n")
        found.append(fresh())
    (tmp_path / own[0]).rename(tmp_path / "model" / "two.py")
    found.append(fresh())
    assert len({*found}) == len(own) + 2
    for name in free:
        (tmp_path / name).write_text("x = 2\n")
    assert fresh() == found[-1]


@pytest.mark.parametrize("other", ["code", "packages", "data"])
def test_a_program_of_other_code_packages_or_text_is_not_run(plan: Plan, tmp_path: Path, other: str) -> None:
    """By `--program` in a process whose packages were renewed since; what was finished by others stays theirs."""
    store, now = Store(tmp_path), address(config_of(plan, "bare"))
    before = Program(now.config, {**now.made, other: "others"})
    store.write(before)
    assert store.program(before.key) == before
    with pytest.raises(UserError, match=f"program {before.key}: {other} of this process are not those"):
        store.program(before.key).checked()
    assert now.checked() is now
    assert store.record(now.key) is None
    assert store.place(before.key) != store.place(now.key)


def test_a_seed_of_a_population_alone_reads_what_it_read(plan: Plan) -> None:
    """Its own order, or the one that all share."""
    for order, seed in (("own", 6), ("shared", 0)):
        shared = {**plan.shared, "data.order": order}
        config = config_of(small_plan(Path(plan.shared["data.dir"]).parent, shared=shared), "bare", None, 4, 4)
        alone = programs._alone(config, 6)
        assert (alone.train.seed, alone.train.seeds, alone.data.seed) == (6, 1, seed)
