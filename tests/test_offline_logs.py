"""Logged interactions become the sessions that the environment would have shown."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from toy import HISTORIES, REWARDS, toy_prepared

from ilrec_sb3.offline import logged_trajectories
from recsim_env import Dynamics, Prepared
from recsim_env.errors import DataError
from recsim_env.prepare import Session
from recsim_env.termination import CategoryDiversity, make_rules


def toy_dynamics(max_repeats: int, limit: int = 100, **options: Any) -> Dynamics:
    rules = (CategoryDiversity(window=5, max_repeats=max_repeats),)
    return Dynamics(toy_prepared(), split="train", rules=rules, limit=limit, **options)


def test_by_hand() -> None:
    first, second, third = logged_trajectories(toy_dynamics(2))
    # Ant (a) and Bee (b): nothing comes twice, and the record runs out
    assert (first.user, first.terminated, first.truncated) == (0, False, True)
    assert first.actions.tolist() == [0, 1]
    assert first.rewards.tolist() == [5.0, 4.0], "the logged ratings"
    # the tracker's sum of (item + 1): nothing yet, Ant, Ant and Bee
    assert first.observations[:, 0].tolist() == [0.0, 1.0, 3.0]
    # Dog and Eel, both c; Cat (a, b) and Fox (a)
    assert (second.user, second.terminated, second.truncated) == (1, True, False)
    assert second.rewards.tolist() == [4.0, 5.0]
    assert (third.user, third.terminated) == (2, True)
    assert {t.source for t in (first, second, third)} == {"log"}


def test_where_the_user_leaves_a_new_session_begins() -> None:
    sessions = logged_trajectories(toy_dynamics(1))  # every item ends the session
    assert [s.user for s in sessions] == [0, 0, 1, 1, 2, 2]
    assert all(s.terminated and len(s) == 1 for s in sessions)
    second = sessions[1]
    assert second.actions.tolist() == [1]
    assert second.history == (0,)
    assert second.observations[:, 0].tolist() == [1.0, 3.0], "the tracker knows the first session"
    masks = np.unpackbits(second.action_masks, axis=1, count=6)  # type: ignore[arg-type]
    assert masks.tolist() == [[1] * 6, [1, 0, 1, 1, 1, 1]]


def test_the_limit_cuts() -> None:
    sessions = logged_trajectories(toy_dynamics(5, limit=1))
    assert len(sessions) == 6
    assert all(s.truncated and not s.terminated for s in sessions)


def test_records_ask_no_rules() -> None:
    sessions = logged_trajectories(toy_dynamics(1), ends="record")
    assert [tuple(s.actions) for s in sessions] == list(HISTORIES)
    assert not any(s.terminated for s in sessions)


def test_rewards_are_logged_ratings_whatever_the_table_says() -> None:
    table = np.full_like(REWARDS, 2.5)
    sessions = logged_trajectories(toy_dynamics(2, table=table))
    assert [tuple(s.rewards) for s in sessions] == [(5.0, 4.0), (4.0, 5.0), (3.0, 3.0)]


def test_an_unknown_end_is_refused() -> None:
    with pytest.raises(DataError, match="ends='rules' came for the logs"):
        logged_trajectories(toy_dynamics(2), ends="rules")  # type: ignore[arg-type]


@pytest.mark.parametrize("termination", ["category", "similarity", "none"])
def test_a_replay_gives_the_same_sessions(prepared: Prepared, termination: str) -> None:
    rules = make_rules(termination, max_repeats=3)
    dynamics = Dynamics(prepared, split="train", rules=rules, limit=7)
    sessions = logged_trajectories(dynamics)
    replayed = dynamics.replay(
        [Session(user=s.user, history=(), actions=s.actions, source="log") for s in sessions]
    )
    rest = slice(dynamics.layout.tracker.stop, None)
    assert len(sessions) > 60
    for session, again in zip(sessions, replayed, strict=True):
        np.testing.assert_array_equal(session.actions, again.actions)
        np.testing.assert_array_equal(session.observations[:, rest], again.observations[:, rest])
        np.testing.assert_array_equal(session.action_masks, again.action_masks)
        assert session.terminated == again.terminated
    assert any(s.terminated for s in sessions) == (termination != "none")


def test_the_tracker_knows_what_came_before_and_nothing_else(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="train", rules=make_rules(max_repeats=3), limit=7)
    tracker, part = prepared.tracker, dynamics.layout.tracker
    sessions = logged_trajectories(dynamics)
    assert any(s.history for s in sessions)
    for session in sessions:
        known = [
            np.array([*session.history, *session.actions[:t]], np.int64)
            for t in range(len(session) + 1)
        ]
        expected = tracker.output(tracker.initial(known))
        np.testing.assert_allclose(session.observations[:, part], expected, atol=1e-5)


@pytest.mark.parametrize("ends", ["rule", "record"])
def test_nothing_of_the_log_is_lost(prepared: Prepared, ends: Any) -> None:
    dynamics = Dynamics(prepared, split="test", rules=make_rules(), limit=9)
    sessions = logged_trajectories(dynamics, ends=ends)
    parts = {
        user: np.concatenate([s.actions for s in group])
        for user, group in itertools.groupby(sessions, key=lambda s: s.user)
    }
    for user, history in enumerate(prepared.histories()):
        np.testing.assert_array_equal(parts.get(user, []), history)
    table = prepared.dataset.interactions
    ratings = {
        (int(u), int(i)): float(r)
        for u, i, r in zip(table.users, table.items, table.ratings, strict=True)
    }
    for session in sessions:
        expected = [ratings[session.user, int(item)] for item in session.actions]
        np.testing.assert_array_equal(session.rewards, np.float32(expected))
