"""Session-end rules against sessions by hand, window counts against a slow reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import CATEGORIES

from recsim_env.errors import DataError
from recsim_env.termination import (
    BILLP,
    PRESETS,
    CategoryDiversity,
    Repeat,
    RuleContext,
    Similarity,
    make_rules,
    window_counts,
)

NAMES = ("a", "b", "c")
MULTI_HOT = np.array([[name in item for name in NAMES] for item in CATEGORIES], np.float32)
A, B, AB, C, C2, A2 = range(6)
LIMIT = 8
ANGLES = np.deg2rad([0.0, 10.0, 30.0, 60.0, 90.0, 180.0])
TEXT = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def _context(
    shown: Sequence[int], item: int, *, reward: float = 3.0, counts_window: int = 0, stale: int = A
) -> RuleContext:
    """One session; places of `shown` that are not valid hold an item of an earlier session."""
    table = np.full((1, LIMIT), stale)
    table[0, : len(shown)] = shown
    steps = np.array([len(shown)])
    mask = np.ones((1, 6), bool)
    mask[0, list(shown)] = False
    return RuleContext(
        items=np.array([item]),
        rewards=np.array([reward], np.float32),
        shown=table,
        steps=steps,
        mask=mask,
        categories=MULTI_HOT,
        text=TEXT,
        counts=window_counts(table, steps, counts_window - 1, MULTI_HOT),
        counts_window=counts_window,
    )


@pytest.mark.parametrize(
    ("window", "repeats", "shown", "item", "ends"),
    [
        (3, 2, [], A, False),  # the first step
        (3, 1, [], A, True),  # one occurrence is already too many
        (3, 2, [A], A2, True),
        (3, 2, [A, B], A2, True),  # the third item is still in a window of three
        (3, 2, [A, B, C], A2, False),  # and the fourth is not
        (2, 2, [A, B], A2, False),
        (4, 2, [A, B, C], A2, True),
        (1, 1, [C], A, True),
        (3, 2, [A, AB], B, True),  # b of the item with two categories
        (3, 2, [A, A2], C, False),  # a came twice, but it is no category of this item
        (50, 4, [A, A2, C], AB, False),  # three of a in a window longer than the session
        (50, 4, [A, A2, AB], A, True),
        (50, 2, [C], A, False),  # t < N: nothing before the start is counted
    ],
)
def test_category_rule_on_hand_written_sessions(
    window: int, repeats: int, shown: list[int], item: int, ends: bool
) -> None:
    rule = CategoryDiversity(window=window, max_repeats=repeats)
    for stale in (A, B, C):
        kept = rule(_context(shown, item, counts_window=window, stale=stale))
        scratch = rule(_context(shown, item, counts_window=window + 1, stale=stale))
        assert kept.tolist() == scratch.tolist() == [ends]
    assert kept.dtype == np.bool_


@pytest.mark.parametrize(
    ("shown", "item", "ends"),
    [([], A, False), ([A], A, True), ([A, B, C], B, True), ([A, B], A2, False)],
)
def test_repeat_rule_on_hand_written_sessions(shown: list[int], item: int, ends: bool) -> None:
    assert Repeat()(_context(shown, item)).tolist() == [ends]


@pytest.mark.parametrize(
    ("threshold", "window", "shown", "item", "ends"),
    [
        (0.2, 2, [], 1, False),  # the first step, whatever an earlier session left behind
        (0.2, 2, [0], 1, True),  # 10 degrees apart: distance 2 sin 5 = 0.174
        (0.17, 2, [0], 1, False),
        (0.2, 2, [0, 5], 1, True),
        (0.2, 1, [0, 5], 1, False),  # the like one is two steps back
        (0.2, 2, [0, 5, 4], 1, False),
        (0.2, 4, [5, 4], 1, False),  # t < N
        (1.0, 4, [2], 3, True),  # 30 degrees apart: 0.518
        (1.0, 4, [1], 4, False),  # 80 degrees apart: 1.286
        (0.0, 4, [2], 2, False),  # nothing is nearer than 0
    ],
)
def test_similarity_rule_on_hand_written_sessions(
    threshold: float, window: int, shown: list[int], item: int, ends: bool
) -> None:
    rule = Similarity(threshold=threshold, window=window, min_reward=2.0)
    assert rule(_context(shown, item, stale=item)).tolist() == [ends]


def test_similarity_rule_ends_on_low_rewards() -> None:
    rule = Similarity(threshold=0.1, window=4, min_reward=2.5)
    assert rule(_context([5], 0, reward=2.4)).tolist() == [True]
    assert rule(_context([5], 0, reward=2.5)).tolist() == [False]


def test_similarity_rule_lets_the_free_steps_pass() -> None:
    rule = Similarity(threshold=0.2, window=4, min_reward=2.0, free_steps=2)
    assert rule(_context([], 0, reward=1.0)).tolist() == [False]
    assert rule(_context([0], 1, reward=1.0)).tolist() == [False]
    assert rule(_context([5, 0], 1)).tolist() == [True]
    assert rule(_context([5, 0], 3, reward=1.0)).tolist() == [True]
    assert rule(_context([5, 0], 3)).tolist() == [False]


@pytest.mark.parametrize(
    ("dataset", "threshold"), [("steam", 0.44), ("amazon", 0.32), ("mine", 0.44)]
)
def test_billp_preset_is_the_similarity_rule_calibrated(dataset: str, threshold: float) -> None:
    rule, repeat = make_rules("billp", dataset=dataset)
    assert rule == Similarity(threshold=threshold, window=4, min_reward=2.0, free_steps=1)
    assert BILLP.get(dataset, threshold) == threshold
    assert isinstance(repeat, Repeat)


@st.composite
def _sessions(draw: Any) -> list[list[int]]:
    return draw(st.lists(st.lists(st.integers(0, 5), max_size=LIMIT), min_size=1, max_size=4))


@given(sessions=_sessions(), window=st.integers(0, 2 * LIMIT), stale=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_window_counts_against_a_slow_reference(
    sessions: list[list[int]], window: int, stale: int
) -> None:
    shown = np.full((len(sessions), LIMIT), stale)
    for row, session in enumerate(sessions):
        shown[row, : len(session)] = session
    steps = np.array([len(session) for session in sessions])
    expected = np.zeros((len(sessions), 3))
    for row, session in enumerate(sessions):
        t = len(session)
        seen = Counter(
            name for item in session[max(0, t - window) : t] for name in CATEGORIES[item]
        )
        expected[row] = [seen[name] for name in NAMES]
    np.testing.assert_array_equal(window_counts(shown, steps, window, MULTI_HOT), expected)


@given(sessions=_sessions(), window=st.integers(1, 12), most=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_category_rule_against_a_slow_reference(
    sessions: list[list[int]], window: int, most: int
) -> None:
    repeats = min(most, window)
    rule = CategoryDiversity(window=window, max_repeats=repeats)
    for session in sessions:
        for item in range(6):
            t = len(session)
            recent = [*session[max(0, t - (window - 1)) : t], item] if window > 1 else [item]
            seen = Counter(name for other in recent for name in CATEGORIES[other])
            expected = any(seen[name] >= repeats for name in CATEGORIES[item])
            assert rule(_context(session, item, counts_window=window)).tolist() == [expected]


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_count_as_large_as_the_window_is_reached_and_a_larger_one_refused(window: int) -> None:
    rule = CategoryDiversity(window=window, max_repeats=window)
    shown = [A, A2, A, A2][: window - 1]
    assert rule(_context(shown, A, counts_window=window)).tolist() == [True]
    if window > 1:
        assert rule(_context([*shown[1:], B], A, counts_window=window)).tolist() == [False]
    with pytest.raises(DataError, match=f"give max_repeats of at most {window}, or termination"):
        CategoryDiversity(window=window, max_repeats=window + 1)
    with pytest.raises(DataError, match="no category reaches in so few items"):
        make_rules(window=window, max_repeats=window + 1)


def test_rules_by_name_and_in_order() -> None:
    class Never:
        name = "never"

        def __call__(self, context: RuleContext) -> Any:
            return np.zeros(len(context.items), bool)

    def names(*args: Any, **kwargs: Any) -> list[str]:
        return [rule.name for rule in make_rules(*args, **kwargs)]

    assert names() == ["category", "repeat"]
    assert names("similarity") == ["similarity", "repeat"]
    assert names("none", repeat=False) == []
    assert names(Never()) == ["never", "repeat"]
    assert names([Never(), CategoryDiversity(3, 2)], repeat=False) == ["never", "category"]


def test_presets_and_what_overrides_them() -> None:
    assert PRESETS["steam"] == (50, 4)
    assert PRESETS["amazon"] == (15, 4)
    assert make_rules(dataset="amazon")[0] == CategoryDiversity(15, 4)
    assert make_rules(dataset="my own")[0] == CategoryDiversity(50, 4)
    assert make_rules(dataset="amazon", window=7, max_repeats=2)[0] == CategoryDiversity(7, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_rules("categroy"), "did you mean 'category'"),
        (lambda: make_rules([object()]), "'object', which is not a rule"),
        (lambda: make_rules(object()), "'object', which is not a rule"),  # type: ignore[arg-type]
        (lambda: CategoryDiversity(window=0), "must be 1 or more"),
        (lambda: CategoryDiversity(max_repeats=0), "must be 1 or more"),
        (lambda: Similarity(window=0), "must be 1 or more"),
        (lambda: Similarity(threshold=-0.1), "not negative"),
        (lambda: Similarity(threshold=float("nan")), "not negative"),
        (lambda: Similarity(free_steps=-1), "not negative"),
        (lambda: make_rules("bilp"), "did you mean 'billp'"),
    ],
)
def test_rules_that_cannot_be_made(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


@given(seed=st.integers(0, 10_000), threshold=st.floats(0.05, 1.9), free=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_similarity_for_all_items_is_similarity_for_each(
    seed: int, threshold: float, free: int
) -> None:
    rng = np.random.default_rng(seed)
    rule = Similarity(threshold=threshold, window=2, min_reward=2.0, free_steps=free)
    context = _context(rng.integers(6, size=int(rng.integers(0, 5))).tolist(), 0)
    table = rng.uniform(1, 5, (1, 6)).astype(np.float32)
    together = rule.ends(replace(context, rewards=table))
    for item in range(6):
        alone = rule(replace(context, items=np.array([item]), rewards=table[:, item]))
        assert together[0, item] == alone[0]
