"""What an example is, for each kind of task, and a corpus: examples by number, in splits, with a fingerprint."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from train.data.overlap import Overlap


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A text, or two, with its label: a name, several names, or a number (regression)."""

    text: str
    label: str | tuple[str, ...] | float
    second_text: str = ""

    def fault(self) -> str:
        """Returns what is wrong with it, as a clause; '' where nothing is."""
        return "" if self.text.strip() else "its text is empty"


@dataclasses.dataclass(frozen=True)
class Tagged:
    """Words with a tag each, by IOB2: every entity begins with `B-NAME` and goes on with `I-NAME`; else `O`."""

    words: tuple[str, ...]
    tags: tuple[str, ...]

    def fault(self) -> str:
        """Returns what is wrong with it, as a clause; '' where nothing is."""
        if not self.words:
            return "it has no words"
        if len(self.words) != len(self.tags):
            return f"it has {len(self.words)} words and {len(self.tags)} tags"
        if "" in self.words:
            return f"its word {self.words.index('')} is empty"
        for before, tag in itertools.pairwise(("O", *self.tags)):
            if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) == 2):
                return f"its tag {tag!r} is none of O, B-NAME and I-NAME"
            if tag.startswith("I-") and before[2:] != tag[2:]:
                return f"its tag {tag!r} goes on with what did not begin (in IOB2 every entity begins with B-)"
        return ""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question whose answers stand in its context: `context[start:start + len(answer)] == answer`; none, if empty."""

    question: str
    context: str
    answers: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()

    def fault(self) -> str:
        """Returns what is wrong with it, as a clause; '' where nothing is."""
        for name in ("question", "context"):
            if not getattr(self, name).strip():
                return f"its {name} is empty"
        if len(self.answers) != len(self.starts):
            return f"it has {len(self.answers)} answers and {len(self.starts)} starts"
        for answer, start in zip(self.answers, self.starts, strict=True):
            if not answer.strip():
                return "one of its answers is empty (no answer is an empty list)"
            if not 0 <= start <= len(self.context) - len(answer):
                return f"its answer {_short(answer)} at {start} is outside of the {len(self.context)} characters"
            found = self.context[start : start + len(answer)]
            if found != answer:
                return f"its answer {_short(answer)} does not stand at {start}, where {_short(found)} stands"
        return ""


class Answer(NamedTuple):
    """What is answered to a question: the text, and where it begins in the context; '' and -1 for no answer."""

    text: str
    start: int = -1


@dataclasses.dataclass(frozen=True)
class Pair:
    """A text and what becomes of it."""

    source: str
    target: str

    def fault(self) -> str:
        """Returns what is wrong with it, as a clause; '' where nothing is."""
        return next((f"its {name} is empty" for name in ("source", "target") if not getattr(self, name).strip()), "")


class Made(NamedTuple):
    """What a source has made: examples in splits, and how many of what were left out."""

    splits: Mapping[str, Sequence[Any]]
    counted: Mapping[str, int] = MappingProxyType({})


Example = TypeVar("Example", Labelled, Tagged, Question, Pair)
FORMS = {"one": "labelled texts", "several": "texts with several labels each", "number": "texts with numbers"}
NUMBER = ("number",)  # what stands for names, where labels are numbers
KINDS = {Labelled: "labelled texts", Tagged: "tagged words", Question: "questions", Pair: "pairs"}


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus(Generic[Example]):
    """Examples in splits.

    Attributes:
        splits: 'train', 'validation', and what else is reported, each with its examples by number.
        fingerprint: a hash of all splits and of the names.
        names: of labels or tags, in the order of their ids; `NUMBER` where labels are numbers, () where there are none.
        counted: what was left out, or is worth telling, by a sentence's end: {'examples without words': 1}.
        varied: gives a training example anew from 64 random bits; None where each stays as it is.
        rationale: the places of the characters on which the label of a text stands; None where nobody knows.
        by_place: the overlap of splits whose texts are too many to compare; None where they are not.
    """

    splits: Mapping[str, Sequence[Example]]
    fingerprint: str
    names: tuple[str, ...] = ()
    counted: Mapping[str, int] = dataclasses.field(default_factory=dict)
    varied: Callable[[Example, int], Example] | None = None
    rationale: Callable[[str], tuple[int, ...]] | None = None
    by_place: Overlap | None = None

    @functools.cached_property
    def some_unanswered(self) -> bool:
        """Whether 'train' has questions without an answer."""
        return any(isinstance(one, Question) and not one.answers for one in self.splits["train"])

    def overlap(self) -> Overlap:
        """Returns how many examples of 'validation' 'train' holds too, whatever is to be learned of them."""
        if self.by_place:
            return self.by_place
        learned = [asked(one) for one in self.splits["train"]]
        known, held_out = set(learned), [asked(one) for one in self.splits["validation"]]
        shared = [one for one in held_out if one in known]
        return Overlap(
            shared=len(shared),
            validation=len(held_out),
            repeated=len(learned) - len(known),
            example=_short(shared[0][0]) if shared else "",
            characters=(sum(map(_size, shared)), sum(map(_size, held_out))),
        )

    def described(self) -> dict[str, Any]:
        """Returns what a passport says of it."""
        return {"fingerprint": self.fingerprint, **self.overlap().described(), "left_out": dict(self.counted)}


def fingerprint_of(splits: Mapping[str, Iterable[Any]], names: Iterable[str]) -> str:
    """Returns the sha256 of every example of every split, and of the names."""
    digest = hashlib.sha256(repr(tuple(names)).encode())
    for split, examples in splits.items():
        digest.update(f"\n{split}".encode())
        for one in examples:
            digest.update(f"\n{one!r}".encode("utf-8", errors="surrogatepass"))
    return digest.hexdigest()


def asked(example: Labelled | Tagged | Question | Pair) -> tuple[str, ...]:
    """Returns what a model is given of an example."""
    match example:
        case Labelled():
            return example.text, example.second_text
        case Tagged():
            return example.words
        case Question():
            return example.question, example.context
        case Pair():
            return (example.source,)


def texts_of(example: Labelled | Tagged | Question | Pair) -> tuple[str, ...]:
    """Returns all texts of an example: what a model is given, and what it is to write."""
    return asked(example) + ((example.target,) if isinstance(example, Pair) else ())


def _size(texts: tuple[str, ...]) -> int:
    return sum(map(len, texts))


def _short(text: str) -> str:
    """A text as it is quoted in a sentence, at most 40 characters of it."""
    return repr(text if len(text) <= 40 else text[:39] + "…")
