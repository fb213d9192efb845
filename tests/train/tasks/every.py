"""Every task, each with the families that can learn it, on a few lines of one's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.configs import own_defaults
from model.families.table import FAMILIES
from tests.tiny import write_text
from train.tasks.table import TASKS

ALIKE = ("rationale", "heads")  # tasks that learn as another one, by its methods, and are measured otherwise
# Each of the others with each family that can learn it.
CASES = [
    (task, name)
    for task, one in TASKS.items()
    for name, kind in FAMILIES.items()
    if one.HEAD in kind.HEADS and task not in ALIKE
]
FIRST = list(dict(reversed(CASES)).items())[::-1]  # each task with the first of its families


def keys_of(task: str, family: str, folder: Path) -> dict[str, Any]:
    """A run of this task on a few lines of one's own."""
    keys = write_text(folder) | {"family": family, "task": task, "data.batch_size": 16, "train.steps": 4}
    if task == "masked_lm":  # with the mask 264 tokens, which two devices can share
        keys |= {"data.tokenizer": "bpe", "data.vocab_size": 263}
    if task == "next_sentence":  # with its three marks 264 as well
        keys |= {"data.tokenizer": "bpe", "data.vocab_size": 261, "model.types": 2}
    if task == "tagging":
        lines = [{"words": ["x", f"w{n}", "y"], "tags": ["O", "B-X", "O"]} for n in range(60)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        keys |= {"data.path": f"{folder}/rows.jsonl", "data.length": 16}
    if task == "span_qa":
        rows = [
            {"question": f"which {name}?", "context": f"x={n} y={90 - n}", "answers": [str(value)], "starts": [start]}
            for n in range(10, 40)
            for name, value, start in (("x", n, 2), ("y", 90 - n, 7))
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        keys |= {"data.path": f"{folder}/rows.jsonl", "data.length": 24}
    labels: dict[str, Callable[[int], Any]] = {
        "classification": lambda n: f"kind {n % 3}",
        "several_labels": lambda n: [f"kind {n % 3}", f"sort {n % 2}"][: n % 3],
        "regression": lambda n: n % 3 / 2,
    }
    if task in labels:
        rows = [{"text": f"{'xyz'[n % 3]} and {n}", "label": labels[task](n)} for n in range(60)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        keys |= {"data.path": f"{folder}/rows.jsonl", "data.length": 16, "objective.hide": 0.3}
    if task == "translation":
        pairs = [{"source": f"{'xyz'[n % 3]} and {n}", "target": f"{n} {'abc'[n % 3]}"} for n in range(60)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        keys |= {"data.path": f"{folder}/rows.jsonl", "data.length": 16}
        keys |= {"data.tokenizer": "bpe", "data.vocab_size": 259}  # and a mark: what two devices can share
    if task == "streamed_text":  # which a stop after two steps cuts, and four go beyond
        keys |= {"objective.windows": 3}
    more = {"optimizer.schedule": "constant", "optimizer.warmup_steps": 1, "train.evaluate_every": 2}
    more |= {"train.checkpoint_every": 2}
    own = own_defaults("family", family)
    return {key: value for key, value in (keys | more).items() if not key.startswith("model.") or key in own}
