"""Marks of spans, typed and shown by their names."""

import pytest

from eval.prompting import prompt_tokens
from model import UserError
from train.data import ByteTokenizer, sentinels

TOKENIZER = ByteTokenizer(("start", *sentinels.names(3)))


def test_the_first_one_has_the_last_id() -> None:
    assert sentinels.names(3) == ("extra_id_2", "extra_id_1", "extra_id_0")
    assert [TOKENIZER.marks[f"extra_id_{number}"] for number in range(3)] == [259, 258, 257]


@pytest.mark.parametrize("text", ["a<extra_id_1>é <extra_id_0><extra_id_0>", "<extra_id_2>", "a < b", "<start>", ""])
def test_a_text_is_shown_as_it_is_typed(text: str) -> None:
    ids = sentinels.encode(TOKENIZER, text)
    assert b"".join(sentinels.shown(TOKENIZER, id) for id in ids).decode() == text
    assert sum(id > 256 for id in ids) == text.count("<extra_id_")
    assert sentinels.shown(TOKENIZER, TOKENIZER.end) == sentinels.shown(TOKENIZER, TOKENIZER.marks["start"]) == b""


def test_a_prompt_has_them_where_the_tokenizer_has() -> None:
    assert prompt_tokens(TOKENIZER, "a<extra_id_0>b") == [255, ord("a"), 259, ord("b")]
    plain = ByteTokenizer(["start"])
    assert prompt_tokens(plain, "a<extra_id_0>") == [255, *b"a<extra_id_0>"]
    with pytest.raises(UserError) as refused:
        prompt_tokens(TOKENIZER, "a<extra_id_3>")
    assert str(refused.value) == (
        "<extra_id_3> in the text is no mark of the tokenizer; take <extra_id_0> to <extra_id_2>."
    )
