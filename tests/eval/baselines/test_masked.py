"""The pieces beside masked ones, against dictionaries of counts."""

from collections import Counter, defaultdict

import numpy as np

from eval.baselines import Neighbours
from eval.baselines.masked import beside, beside_spans
from tests.train.tasks.test_span_corruption import made, pairs_of

V = 7


def commonest(counter: Counter[int]) -> int:
    return min(counter, key=lambda piece: (-counter[piece], piece))


def test_equals_counting_in_dictionaries() -> None:
    rng = np.random.default_rng(3)
    stream_N = rng.choice(V - 1, 300, p=np.array([1, 2, 3, 4, 5, 6]) / 21)  # the last id is never seen
    inputs_BT, targets_BT = rng.integers(0, V, (5, 11)), rng.integers(0, V - 1, (5, 11))
    weights_BT = rng.integers(0, 2, (5, 11)).astype(float)
    left, right, both = (defaultdict(Counter) for _ in range(3))
    ids = stream_N.tolist()
    for i, piece in enumerate(ids):
        if i:
            left[ids[i - 1]][piece] += 1
        if i + 1 < len(ids):
            right[ids[i + 1]][piece] += 1
        if 0 < i < len(ids) - 1:
            both[ids[i - 1], ids[i + 1]][piece] += 1
    none = commonest(Counter(ids))
    expected = dict.fromkeys(("none", "left", "right", "both"), 0.0)
    unseen = 0
    for row, targets, weights in zip(inputs_BT.tolist(), targets_BT, weights_BT, strict=True):
        for i in range(len(row)):
            before, after = row[i - 1] if i else None, row[i + 1] if i + 1 < len(row) else None
            by_left = commonest(left[before]) if left.get(before) else None
            by_right = commonest(right[after]) if right.get(after) else None
            between = commonest(both[before, after]) if both.get((before, after)) else None
            unseen += between is None
            guesses = {"none": [none], "left": [by_left, none], "right": [by_right, none]}
            guesses["both"] = [between, by_left, by_right, none]
            for name, some in guesses.items():
                guess = next(one for one in some if one is not None)
                expected[name] += weights[i] * (guess == targets[i])
    assert unseen > 10
    found = Neighbours(stream_N, V).accuracy_sums(beside(inputs_BT), targets_BT, weights_BT)
    assert found == {name: (value, weights_BT.sum()) for name, value in expected.items()}


def test_sums_of_parts_add_up() -> None:
    rng = np.random.default_rng(5)
    rule = Neighbours(rng.integers(0, V, 100, dtype=np.uint16), V)
    inputs_BT, targets_BT, weights_BT = rng.integers(0, V, (6, 5)), rng.integers(0, V, (6, 5)), np.ones((6, 5))
    whole = rule.accuracy_sums(beside(inputs_BT), targets_BT, weights_BT)
    parts = [
        rule.accuracy_sums(beside(inputs_BT[i : i + 2]), targets_BT[i : i + 2], weights_BT[i : i + 2])
        for i in (0, 2, 4)
    ]
    for name, (total, count) in whole.items():
        assert (total, count) == tuple(np.sum([part[name] for part in parts], axis=0))


def test_a_rule_sees_what_is_before_a_token_and_what_was_kept_behind_its_span() -> None:
    """Beside a loop over the pairs."""
    rows, texts = made()
    batch, end = rows.rows(range(len(rows))), texts.tokenizer.end
    left_BT, right_BT = beside_spans(batch, texts.tokenizer.marks["start"])
    text_BT = (batch["targets"] < end) & (batch["weights"] > 0)
    wanted = []
    for source, target in pairs_of(batch):
        before = after = -1
        for place, token in enumerate(target):
            if token > end:
                at = source.index(token)
                before, after = source[at - 1] if at else -1, source[at + 1]
            elif token < end:
                wanted.append((before, -1 if target[place + 1] < end else after))
                before = token
    np.testing.assert_array_equal(np.stack([left_BT[text_BT], right_BT[text_BT]], axis=1), wanted)
    found = Neighbours(texts.tokens("train"), 256).accuracy_sums((left_BT, right_BT), batch["targets"], text_BT)
    assert {count for _, count in found.values()} == {text_BT.sum()}
    assert found["both"][0] > found["left"][0] > found["none"][0]
