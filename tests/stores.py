"""A bucket in this process, which keeps the service's rule of generations to the letter, as emulators do not."""

import dataclasses
import datetime
import itertools

from train.run.bucket.objects import Refused, Stored, checksum


@dataclasses.dataclass
class Store:
    """Objects by name. `now` is its clock, `written` the names that were written or, with a hyphen, deleted. `faster`
    is what somebody else writes just before the next write in place of a generation.
    """

    address: str = "gs://mine/try"
    now: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    def __post_init__(self) -> None:
        self.data: dict[str, tuple[bytes, Stored]] = {}
        self.written: list[str] = []
        self.faster: list[bytes] = []
        self.loses_answers = False
        self._numbers = itertools.count(1)

    def passes(self, seconds: float) -> None:
        self.now += datetime.timedelta(seconds=seconds)

    def put(self, name: str, data: bytes) -> Stored:
        stored = Stored(len(data), checksum(data), next(self._numbers), self.now)
        self.data[name] = data, stored
        return stored

    def listed(self, below: str = "") -> dict[str, Stored]:
        return {name: stored for name, (_, stored) in self.data.items() if name.startswith(below)}

    def read(self, name: str) -> tuple[bytes, Stored] | None:
        return self.data.get(name)

    def write(self, name: str, data: bytes, generation: int | None = None) -> Stored:
        if self.faster and generation:
            self.put(name, self.faster.pop())
        self._check(name, generation)
        self.written.append(name)
        stored = self.put(name, data)
        if self.loses_answers:  # and tries again, as Google's client does
            self._check(name, generation)
        return stored

    def delete(self, name: str, generation: int | None = None) -> None:
        self._check(name, generation)
        self.data.pop(name, None)
        self.written.append(f"-{name}")

    def _check(self, name: str, generation: int | None) -> None:
        found = self.data[name][1].generation if name in self.data else 0
        if generation is not None and generation != found:
            raise Refused(f"{name} is of generation {found}, and not {generation}")
