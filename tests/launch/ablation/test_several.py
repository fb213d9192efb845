"""A program of a grid in two real processes leaves what one process leaves."""

import re
from pathlib import Path

import jax
import pytest

from launch.ablation.plan import config_of
from launch.ablation.programs import Store, address
from tests.launch.ablation.small_plan import small_plan
from tests.several import open_mpi, run_together, slurm

pytestmark = pytest.mark.rest
TINY = {"train.steps": 4, "train.evaluate_every": 2, "train.checkpoint_every": 2, "mesh.fsdp": 2}


def test_a_program_in_two_processes_leaves_the_same_record(tmp_path: Path) -> None:
    """And so do seeds that diverge together, each of which then runs alone."""
    program = address(config_of(small_plan(tmp_path, shared=TINY), "bare", 1e-2, seeds=2))
    wild = address(config_of(small_plan(tmp_path, shared=TINY), "bare", 1e30, seeds=2))
    two, one = Store(tmp_path / "two" / "store"), Store(tmp_path / "one" / "store")
    for turn, each in enumerate((program, wild)):
        two.write(each)
        words = [f"--workdir={tmp_path / 'two'}", f"--program={each.key}"]
        ends = run_together(slurm, ("-m", "launch.ablate"), 2 * [words], tmp_path / f"logs {turn}")
        assert [outcome.status for outcome in ends] == [0, 0], ends[0].err + ends[1].err
    assert jax.process_count() == 1
    for each in (program, wild):
        found, wanted = two.record(each.key), one.run(each)
        assert found is not None
        assert found.result == wanted.result
    assert found.failed.keys() == {"0", "1"}
    files = [{path.name for path in store.place(program.key).iterdir()} for store in (one, two)]
    assert files[0] == files[1]
    logs = [(store.place(program.key) / "log.txt").read_text() for store in (one, two)]
    told = [sorted(re.findall(r"^step (\d)/4  (loss|val/loss) ", log, re.MULTILINE)) for log in logs]
    assert told[0] == told[1]
    assert len({*told[0]}) == len(told[0]) == 4 + 2  # steps, evaluations


def test_a_grid_in_two_processes_is_refused(tmp_path: Path) -> None:
    words = ["--plan=configs/ablations/scale.py", f"--workdir={tmp_path / 'grid'}"]
    ends = run_together(open_mpi, ("-m", "launch.ablate"), 2 * [words], tmp_path / "logs")
    for rank, outcome in enumerate(ends):
        assert outcome.status == 2
        assert f"--plan is for one process, and this is rank {rank} of 2 (by Open MPI)" in outcome.err
        assert "--print-commands" in outcome.err
    assert not (tmp_path / "grid").exists()
