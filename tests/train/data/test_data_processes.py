"""Several processes that open the same data at once, on a machine where nothing is prepared yet."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = """
import itertools, sys
from configs.base import get_config
from train.data import batches, open_data

config = get_config().data
config.update(dir=sys.argv[1], path=sys.argv[2], vocab_size=263, length=7)
data = open_data(config)
windows = data.windows('train')
total = sum(int(batch['tokens'].sum()) for batch in itertools.islice(batches(windows, 3, seed=0), 11))
print(data.fingerprint, data.tokenizer.fingerprint, len(windows), total)
"""


@pytest.mark.rest
def test_processes_that_open_at_once_agree(tmp_path) -> None:
    for i in range(23):
        (tmp_path / f"{i}.txt").write_text(f"def f{i}(x):\n    return x + {i}\n")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "data"), f"{tmp_path}/*.txt"]
    root = ROOT
    started = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate(timeout=300)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(printed) == 1
    assert not list((tmp_path / "data" / "heed").glob("*.partial"))
