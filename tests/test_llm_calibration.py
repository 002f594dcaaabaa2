"""Calibration of the similarity rule: each figure by hand, and the recorded sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from llm_expert.calibration import (
    Recording,
    Steps,
    area_interval,
    category_distance,
    causes,
    compared_steps,
    estimated_length,
    grounded_rows,
    half_of_users,
    length_threshold,
    make_recordings,
    operating_point,
    roc,
    text_distance,
    youden_threshold,
)
from llm_expert.grounding import Grounder
from llm_expert.recorded import RecordedEpisode, RecordedItem, RecordedStep, recorded_episodes
from recsim_env.datasets.dataset import Catalogue
from recsim_env.errors import DataError

ANGLES = np.deg2rad([0.0, 60.0, 90.0, 180.0])
VECTORS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def recording(
    items: list[int],
    left: bool = True,
    history: tuple[int, ...] = (),
    rewards: list[float] | None = None,
    user: int = 0,
) -> Recording:
    worth = rewards or [4.0] * (len(items) - left) + [np.nan] * left
    return Recording(user, "test", np.array(items), np.array(history, int), np.array(worth), left)


def steps(distance: list[float], left: list[int], lengths: list[int]) -> Steps:
    """Steps of sessions of the given lengths, one after the other, without their first steps."""
    number = np.concatenate([np.arange(1, length) for length in lengths])
    session = np.repeat(np.arange(len(lengths)), np.array(lengths) - 1)
    return Steps(
        np.array(distance),
        np.array(left, bool),
        np.array(distance) == 0.0,
        session,
        number,
        np.array(lengths),
    )


def test_distances_by_hand() -> None:
    text = text_distance(VECTORS)
    np.testing.assert_allclose(text(0, np.array([0, 1, 2, 3])), [0, 1, 2**0.5, 2], atol=1e-6)
    category = category_distance([("a",), ("a", "b"), ("c",), ()])
    np.testing.assert_allclose(category(0, np.array([0, 1, 2, 3])), [0, 0.5, 1, 1])
    assert category(3, np.array([3])).tolist() == [0.0]


def test_steps_are_compared_with_the_last_ones_of_their_session() -> None:
    told = [recording([2, 0, 3, 0], history=(1,)), recording([3, 1], left=False)]
    found = compared_steps(told, text_distance(VECTORS), window=2)
    np.testing.assert_allclose(found.distance, [2**0.5, 2**0.5, 0, 3**0.5], atol=1e-6)
    assert found.left.tolist() == [False, False, True, False]
    assert found.repeat.tolist() == [False, False, True, False]
    assert found.session.tolist() == [0, 0, 0, 1]
    assert found.number.tolist() == [1, 2, 3, 1]
    assert found.lengths.tolist() == [4, 2]
    near = compared_steps(told, text_distance(VECTORS), window=1).distance
    np.testing.assert_allclose(near, [2**0.5, 2, 2, 3**0.5], atol=1e-6)


def test_the_history_is_compared_where_asked_for() -> None:
    told = [recording([2, 0], history=(3, 1))]
    text = text_distance(VECTORS)
    assert compared_steps(told, text, 2).distance.tolist() == pytest.approx([2**0.5])
    assert compared_steps(told, text, 2, with_history=True).distance.tolist() == pytest.approx([1])
    assert compared_steps(told, text, 1, with_history=True).distance.tolist() == pytest.approx(
        [2**0.5]
    )


def test_curve_by_hand() -> None:
    # left at 0.0 and 0.4; stayed at 0.2, 0.6, 0.8: 5 of the 6 pairs are in order
    found = steps([0.2, 0.0, 0.6, 0.4, 0.8], [0, 1, 0, 1, 0], [3, 3, 2])
    curve = roc(found)
    assert curve.area == pytest.approx(5 / 6)
    np.testing.assert_allclose(curve.thresholds, [0, 0.1, 0.3, 0.5, 0.7, 1.8])
    np.testing.assert_allclose(curve.true_rate, [0, 0.5, 0.5, 1, 1, 1])
    np.testing.assert_allclose(curve.false_rate, [0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    assert youden_threshold(curve) == pytest.approx(0.5)
    assert operating_point(found, 0.5) == (1.0, pytest.approx(1 / 3))


def test_of_equal_youden_thresholds_the_least_counts() -> None:
    found = steps([0.0, 0.2, 0.4, 0.6], [1, 0, 1, 0], [5])
    assert youden_threshold(roc(found)) == pytest.approx(0.1)


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30).filter(
        lambda rows: 0 < sum(left for _, left in rows) < len(rows)
    )
)
@settings(max_examples=40, deadline=None)
def test_thresholds_reproduce_the_curve(rows: list[tuple[int, bool]]) -> None:
    found = steps([d / 4 for d, _ in rows], [left for _, left in rows], [len(rows) + 1])
    curve = roc(found)
    for k, threshold in enumerate(curve.thresholds):
        expected = (curve.true_rate[k], curve.false_rate[k])
        assert operating_point(found, float(threshold)) == pytest.approx(expected)
    assert curve.area == pytest.approx(roc_auc_score(found.left, -found.distance))


def test_curve_needs_both_kinds_of_steps() -> None:
    with pytest.raises(DataError, match=r"2 of 2 steps .* give more recorded sessions"):
        roc(steps([0.1, 0.2], [1, 1], [2, 2]))


def test_length_counts_what_the_recording_cut_off() -> None:
    # the rule ends session 0 at its second step; session 1 plays its 4 steps and is not ended
    found = steps([0.1, 0.9, 0.5, 0.8, 0.7], [0, 1, 0, 0, 1], [3, 4])
    assert estimated_length(found, 0.2) == (2 + 4) / 1
    assert estimated_length(found, 0.6) == (2 + 2) / 2
    assert estimated_length(found, 0.05) == np.inf


def test_length_threshold_meets_the_recorded_length() -> None:
    # recorded: 7 steps and 2 leaves, 3.5 a session; under 0.75: (3 + 4) / 2
    found = steps([0.9, 0.6, 0.9, 0.8, 0.7], [0, 1, 0, 0, 1], [3, 4])
    threshold = length_threshold(found)
    assert threshold == pytest.approx(0.75)
    assert estimated_length(found, threshold) == 3.5
    assert estimated_length(found, 0.65) == 7.0


def test_interval_holds_the_area_and_knows_sessions() -> None:
    generator = np.random.default_rng(0)
    left = generator.random(400) < 0.3
    distance = generator.random(400) + 0.3 * ~left
    found = steps(distance.tolist(), left.tolist(), [5] * 100)
    low, high = area_interval(found, np.random.default_rng(1))
    assert low < roc(found).area < high
    assert 0.03 < high - low < 0.2
    assert (low, high) == area_interval(found, np.random.default_rng(1))
    same = steps([0.1, 0.9] * 2, [1, 0] * 2, [3, 3])
    assert area_interval(same, np.random.default_rng(0), draws=20) == (1.0, 1.0)


def test_causes_by_hand() -> None:
    told = [
        recording([0, 1, 0], user=1),  # a repeat
        recording([2, 3], user=1, rewards=[1.0, np.nan]),  # low at first; 3 is liked elsewhere
        recording([0, 3, 2], left=False, user=1, rewards=[5.0, 4.0, 1.5]),
        recording([1, 3], left=False, user=2, rewards=[4.0, 4.0]),
        recording([0, 3], left=False, user=1),  # the same user likes 3 once more
    ]
    found = causes(told, window=4)
    assert (found.left, found.repeats_left, found.repeats_stayed) == (2, 1, 0)
    assert (found.low_first, found.low_later) == (1, 1)
    assert (found.others, found.others_liked) == (1, 1)
    # later steps at which users stayed: 1 of user 1; 3 and 2; 3 of user 2; 3: two are seen twice
    assert (found.stays, found.stays_liked) == (5, 2)
    assert found.others_alike == 1.0  # 1 / (2 / 5), but no more than there are


def test_recordings_of_episodes() -> None:
    shown = (
        RecordedStep("Portal", 7, "", 4.0, left=False),
        RecordedStep("Fez", 9, "", None, left=True),
    )
    episode = RecordedEpisode("run", "model", "test", 3, 11, (9,), shown)
    (told,) = make_recordings([episode], {7: 0, 9: 1})
    assert (told.user, told.split, told.left) == (11, "test", True)
    assert (told.items.tolist(), told.history.tolist()) == ([0, 1], [1])
    np.testing.assert_array_equal(told.rewards, [4.0, np.nan])
    assert half_of_users([told], 1) == [told]
    assert half_of_users([told], 0) == []


class ByFirstLetter:
    """Texts are alike where their first letters are."""

    def embed(self, texts: Sequence[str], /) -> np.ndarray:
        return np.eye(128, dtype=np.float32)[[ord(text[0].lower()) for text in texts]]


def test_grounding_by_title_then_by_text() -> None:
    titles = ("Quake", "Portal", "Doomed", "Pong")
    catalogue = Catalogue(tuple("abcd"), titles, (("Game",),) * 4, ("",) * 4)
    items = {7: RecordedItem("pong", ("Game",)), 9: RecordedItem("Diablo", ("Game",))}
    grounder = Grounder(catalogue, ByFirstLetter())
    assert grounded_rows(items, [9, 7, 9], grounder) == {7: 3, 9: 2}


def test_documents_of_recorded_items() -> None:
    assert RecordedItem("Doom", ("Action", "Shooter")).document == "Doom. Action, Shooter"
    assert RecordedItem("Doom", ()).document == "Doom"


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "repeats", "others"), [("steam", 453, 282), ("amazon", 36, 122)])
def test_what_the_recordings_say(real_data: Path, name: str, repeats: int, others: int) -> None:
    episodes, items = recorded_episodes(name, real_data)
    rows: dict[int, Any] = {item: row for row, item in enumerate(items)}
    told = [r for r in make_recordings(episodes, rows) if r.split == "test"]
    found = causes(told)
    assert (found.repeats_left, found.repeats_stayed) == (repeats, 0)
    assert found.low_later == 0
    assert found.low_first > 0
    assert found.others == others
    assert causes(told, window=5).repeats_stayed > 0  # the window is 4
    assert min(len(r.items) for r in told) == 2  # the first step ends nothing
