"""Questions to `transformers`, which lives in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT

PEER = ROOT / ".cache/oracle/bin/python"
MARKS = [
    pytest.mark.rest,
    pytest.mark.skipif(not PEER.exists(), reason="`make test-rest` builds .cache/oracle, which holds transformers"),
]


def ask(
    asked: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path, module: str = "tests.model.peers"
) -> dict[str, np.ndarray]:
    """What a module answers to {name: question}, with arrays `name/...`; files are written to a folder."""
    (folder / "asked.json").write_text(json.dumps(asked))
    np.savez(folder / "asked.json.npz", **arrays)
    command = [str(PEER), "-m", module, str(folder / "asked.json"), str(folder / "found.npz")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "found.npz") as found:
        return dict(found)
