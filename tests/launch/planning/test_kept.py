"""A plan that is kept, by the whole command."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launch.configs import load
from launch.planning import running
from launch.planning.chips import parse_topology
from tests.conftest import ROOT


def test_a_kept_plan_of_8b_parameters_is_told_within_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of processor time, since this machine may be busy: no device is made, and no compiler asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    where = parse_topology("v5e:16x16")
    job = {"config": load("gpt:llama_8b").to_dict(), "topology": where.topology, "slices": 1}
    kept = {"topology": where.topology, "slices": 1, "chips": 256, "devices": 256, "mesh": {"fsdp": 256}, "labels": 0}
    sizes = "parameters", "tokens_per_step", "peak_bytes", "needed_bytes"
    flops = "flops_per_token", "attention_flops_per_token", "executed_flops_per_token"
    kept |= dict.fromkeys((*sizes, *flops), 8_030_000)
    kept |= {"fits": True, "hbm_bytes": 16_000_000, "replicated_bytes": {}, "steps": 1}
    file = tmp_path / "heed" / "plans" / f"{running._key(job)}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(kept))
    words = [sys.executable, "-m", "launch.plan", "--config=configs/gpt.py:llama_8b", "--topology=v5e:16x16"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "8,030,000 parameters" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
