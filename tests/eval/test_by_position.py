"""Which targets a name speaks of; the values are held to a loop in test_likelihood.py."""

import numpy as np
import pytest

from eval.by_position import NAMES, lacking, meaning
from train.data import Windows
from train.tasks.by_quarter import quarter


@pytest.mark.parametrize("length", [4, 11, 16, 37])
def test_quarters_are_what_their_sentences_say(length: int) -> None:
    quarters = quarter(np.arange(length), length)
    for number, name in enumerate(NAMES[:4]):
        at = np.flatnonzero(quarters == number)
        assert f"see {at[0] + 1} to {at[-1] + 1} tokens of their document" in meaning(name, length)
    assert quarter(np.array([length, 9 * length]), length).tolist() == [3, 3]
    assert meaning("val/loss", length) == ""
    assert f"{length} tokens, less that of those that see 1 to " in meaning(NAMES[-1], length)


def test_a_text_lacks_what_no_document_of_it_reaches() -> None:
    """Documents of 6 tokens with their ends, in windows of 16 and of 8; the last window is padded."""
    stream = np.array([0, *(5 * [1] + [0]) * 7])
    assert lacking(Windows(stream, 0, 16, 99)) == (
        "val/loss/quarter_3",
        "val/loss/quarter_4",
        "val/loss/last_less_first",
    )
    assert lacking(Windows(stream, 0, 8, 99)) == ("val/loss/quarter_4", "val/loss/last_less_first")
    assert lacking(Windows(np.ones(400, int), 0, 16, 99)) == ()
