"""Entities out of tags, by strict IOB2, and their F1 (as `seqeval` has it in its strict mode)."""

from collections.abc import Sequence

import numpy as np

Entity = tuple[int, int, str]  # its first word, the one after its last, and its name


def entities(tags: Sequence[str]) -> set[Entity]:
    """Returns the entities of a row of tags: each begins with `B-NAME` and goes on with `I-NAME`.

    An `I-` that goes on with nothing of its name begins nothing, where `seqeval` by default lets it begin an entity.
    """
    found = set()
    for start, tag in enumerate(tags):
        if tag.startswith("B-"):
            stop = start + 1
            while stop < len(tags) and tags[stop] == f"I-{tag[2:]}":
                stop += 1
            found.add((start, stop, tag[2:]))
    return found


def filled(tags: Sequence[str], words: int) -> tuple[str, ...]:
    """Returns a tag for each word: `O` for those beyond what was predicted, as where a text was cut.

    Raises:
        ValueError: there are more tags than words.
    """
    if len(tags) > words:
        raise ValueError(f"{len(tags)} tags were predicted of {words} words")
    return (*tags, *["O"] * (words - len(tags)))


def entity_scores(predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns `precision`, `recall` and `f1` of entities over all examples, and `tag_accuracy` of single words.

    A row may be predicted in part, as where a text was cut: the words beyond are `O` in the prediction, and what is
    true of them counts. A score of nothing, as the precision of no entity, is 0.

    Raises:
        ValueError: there is not one row for each example, or a row has more tags than words.
    """
    hits = guessed = known = 0
    right: list[bool] = []
    for given, tags in zip(predicted, true, strict=True):
        row = filled(given, len(tags))
        mine, theirs = entities(row), entities(tags)
        hits, guessed, known = hits + len(mine & theirs), guessed + len(mine), known + len(theirs)
        right += [a == b for a, b in zip(row, tags, strict=True)]
    return {
        "precision": hits / guessed if guessed else 0.0,
        "recall": hits / known if known else 0.0,
        "f1": 2 * hits / (guessed + known) if guessed + known else 0.0,
        "tag_accuracy": float(np.mean(right)),
    }
