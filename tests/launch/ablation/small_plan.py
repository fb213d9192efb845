"""A plan on a few lines of text, whose arms train in seconds, and changes of it."""

from pathlib import Path
from typing import Any

from launch.ablation.plan import Plan, make_plan
from tests.tiny import SIZES, write_text

VALUES: dict[str, Any] = {
    "question": "Does the scale of the scores matter?",
    "factor": "model.scale",
    "arms": {"scaled": {}, "bare": {"model.scale": 1.0}},
    "smallest": 0.01,
    "seeds": range(8),
    "pilot_seeds": (100, 101),
    "tune_seeds": (200, 201),
    "learning_rates": (1e-3, 3e-3, 1e-2),
}


def small_plan(folder: Path, **changes: Any) -> Plan:
    """The plan, whose text is written to the folder once."""
    if not (folder / "text").exists():
        write_text(folder)
    shared = {**SIZES, "data.path": f"{folder}/text/*.txt", "data.dir": f"{folder}/data", **changes.get("shared", {})}
    return make_plan("small", {**VALUES, **changes, "shared": shared})
