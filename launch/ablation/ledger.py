"""What was looked at, by question: every plan, arm and look, whatever came of it, counted once however often a grid is
killed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.ablation.plan import Plan, digest
from train.run.files.json_files import dumps, loads


class Ledger:
    """The lines of a folder's ledger.jsonl; a line that says what one says already is not written again."""

    def __init__(self, file: Path):
        self._file = file

    def lines(self, question: str) -> list[dict[str, Any]]:
        """What was noted of a question, oldest first; a line that was cut is none, and is noted again."""
        found: dict[str, dict[str, Any]] = {}
        for piece in self._file.read_bytes().splitlines() if self._file.is_file() else []:
            try:
                line = loads(piece)
            except ValueError:
                continue
            if line["question"] == question:
                found.setdefault(line["id"], line)
        return list(found.values())

    def note(self, question: str, event: str, **values: Any) -> None:
        """Notes an event, unless the same one is noted."""
        line: dict[str, Any] = {"question": question, "event": event, **values}
        line = {"id": digest(line), **line}
        if any(old["id"] == line["id"] for old in self.lines(question)):
            return
        begun = self._file.read_bytes() if self._file.is_file() else b""
        with self._file.open("ab") as opened:
            opened.write((b"\n" if begun and not begun.endswith(b"\n") else b"") + f"{dumps(line)}\n".encode())
            opened.flush()
            os.fsync(opened.fileno())

    def begin(self, plan: Plan) -> None:
        """Notes a plan and its arms."""
        size = str(plan.smallest)
        self.note(plan.question, "plan", plan=plan.hash, name=plan.name, smallest=size, seeds=list(plan.seeds))
        for arm in plan.arms:
            self.note(plan.question, "arm", config=digest(plan.resolved["configs"][arm]), arm=arm)

    def look(self, plan: Plan, number: int, programs: list[str], words: Mapping[str, str]) -> None:
        """Notes that the verdict's seeds were looked at, and the word of each contrast then."""
        keys = digest(sorted(programs))
        seeds = list(plan.seeds[: plan.looks[number - 1]])
        self.note(
            plan.question,
            "look",
            plan=plan.hash,
            look=number,
            smallest=str(plan.smallest),
            seeds=seeds,
            programs=keys,
            words=dict(words),
        )

    def looks(self, question: str) -> list[dict[str, Any]]:
        """What was noted of each look: 'plan', 'look', 'smallest', 'seeds', 'programs', 'words'."""
        return [line for line in self.lines(question) if line["event"] == "look"]

    def counts(self, question: str) -> dict[str, int]:
        """How many plans, different arms and looks there were."""
        events = [line["event"] for line in self.lines(question)]
        return {f"{event}s": events.count(event) for event in ("plan", "arm", "look")}

    def remarks(self, plan: Plan) -> list[str]:
        """What a reader must know of earlier looks at this question: sentences for the page."""
        earlier = [line for line in self.lines(plan.question) if line.get("plan", plan.hash) != plan.hash]
        looks = [line for line in earlier if line["event"] == "look"]
        plans = len({line["plan"] for line in earlier if line["event"] == "plan"})
        if not plans:
            return []
        others = "1 other plan asks" if plans == 1 else f"{plans} other plans ask"
        found = [f"This plan was changed or extended: {others} the same question in this folder."]
        if looks:
            seen = len({*plan.seeds} & {seed for line in looks for seed in line["seeds"]})
            were = "1 look was" if len(looks) == 1 else f"{len(looks)} looks were"
            found.append(f"{were} taken under other plans before, at {seen} of these seeds.")
        sizes = sorted({line["smallest"] for line in looks} - {str(plan.smallest)})
        if sizes:
            found.append(f"D was edited after a look: it was {' and '.join(sizes)}, and is {plan.smallest}.")
        return found
